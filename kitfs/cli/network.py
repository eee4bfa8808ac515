"""Flags of every verb that talks to a registry, as kit has them, and the registry that they lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kitfs.cli.settings import Settings

if TYPE_CHECKING:
    from kitfs.transfer.registry.client import Registry


class Network(NamedTuple):
    """How to reach registries; the fields are the flags.

    Attributes:
        plain_http: Speak http.
        tls_verify: Check certificates.
        tls_cert: Certificates to trust in place of the system's.
        cert: A client certificate.
        key: Its key.
        concurrency: Simultaneous downloads or uploads.
        proxy: A proxy.
    """

    plain_http: bool
    tls_verify: bool
    tls_cert: str
    cert: str
    key: str
    concurrency: int
    proxy: str

    def connect(self, settings: Settings, host: str) -> Registry:
        """The registry of a host; nothing is sent."""
        from kitfs.transfer.registry.client import Registry
        from kitfs.transfer.registry.http import HttpOptions

        options = HttpOptions(self.plain_http, self.tls_verify, self.tls_cert, self.cert, self.key, self.proxy)
        return Registry(host, options, settings.kitops_home)


_OPTIONS = [
    click.option("--plain-http", is_flag=True, help="Speak http to registries, not https."),
    click.option("--tls-verify/--no-tls-verify", default=True, help="Check the certificates of registries."),
    click.option("--tls-cert", default="", metavar="FILE", help="Certificates to trust in place of the system's."),
    click.option("--cert", default="", envvar="KITOPS_CLIENT_CERT", metavar="FILE", help="A client certificate."),
    click.option("--key", default="", envvar="KITOPS_CLIENT_KEY", metavar="FILE", help="The client certificate's key."),
    click.option("--concurrency", default=5, type=click.IntRange(1, 64), show_default=True,
                 help="Simultaneous downloads or uploads."),
    click.option("--proxy", default="", metavar="URL", help="A proxy, in place of that of the environment."),
]  # fmt: skip


def network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the flags; it gets them together, as ``network``."""

    def run(settings: Settings, *arguments: Any, **options: Any) -> Any:
        taken = {name: options.pop(name) for name in Network._fields}
        taken["tls_verify"] = taken["tls_verify"] not in (False, "false")
        return function(settings, *arguments, network=Network(**taken), **options)

    run.__doc__ = function.__doc__
    vars(run)["__click_params__"] = getattr(function, "__click_params__", [])
    for option in reversed(_OPTIONS):
        run = option(run)
    return run
