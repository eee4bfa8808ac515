"""``kitfs pull``, ``push``, ``login`` and ``logout``: ModelKits come from registries and go there."""

from __future__ import annotations

import sys

import click

from kitfs.cli.network import Network, network_options
from kitfs.cli.output import print_json, print_result, say, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb
from kitfs.errors import UsageError

_PASSWORD_SIZE_MAX = 64 << 10


@verb("pull", short_help="Retrieve a ModelKit from a registry.",
      examples=["kitfs pull registry.example.com/acme/myllm:3.1.4"])  # fmt: skip
@click.argument("reference")
@network_options
def pull(settings: Settings, reference: str, network: Network) -> None:
    """Retrieve the ModelKit REFERENCE, and the parents that its Kitfile names, from its registry.

    Layers that the store has are not fetched. What a killed pull has brought is kept: the same command goes on there.
    Everything is verified, and indexed while it arrives; a ModelKit appears whole or not at all.
    """
    from kitfs.oci.reference import parse_reference
    from kitfs.transfer.importer import import_source
    from kitfs.transfer.registry.remote_source import RemoteSource

    wanted = parse_reference(reference)
    with settings.open_store() as store:
        source = RemoteSource(store, lambda host: network.connect(settings, host), concurrency=network.concurrency)
        with source, show_progress(settings.progress) as progress:
            source.resolve(wanted)
            report = import_source(store, source, references=[wanted], progress=progress)
            source.finish()
    for warning in report.warnings:
        warn(warning)
    digest = report.kits[0].manifest
    if settings.json:
        print_json({"reference": wanted.display, "digest": str(digest)})
    else:
        print_result(str(digest) if settings.quiet else f"Pulled {digest}")


@verb("push", short_help="Send a ModelKit to a registry.",
      examples=["kitfs push registry.example.com/acme/myllm:3.1.4",
                "kitfs push myllm:3.1.4 registry.example.com/acme/myllm:3.1.4"])  # fmt: skip
@click.argument("source")
@click.argument("target", required=False)
@network_options
def push(settings: Settings, source: str, target: str | None, network: Network) -> None:
    """Send the ModelKit SOURCE to a registry, under TARGET or its own name.

    What the registry has is not sent. The manifest goes last: a ModelKit is never visible before it is whole.
    """
    from kitfs.cli.references import get_digest
    from kitfs.oci.reference import DEFAULT_HOST, parse_reference
    from kitfs.transfer.registry.push import push as send
    from kitfs.transfer.registry.remote_source import NoRegistry

    here = parse_reference(source)
    there = parse_reference(target) if target else here
    if there.host == DEFAULT_HOST:
        raise NoRegistry(there)
    with settings.open_store(create=False) as store:
        digest = get_digest(store, here, failed="failed to push")
        registry = network.connect(settings, there.host)
        with show_progress(settings.progress) as progress:
            report = send(store, digest, there, registry, progress=progress, concurrency=network.concurrency)
    if settings.json:
        print_json({"reference": there.display, "digest": str(digest), "sent": report.sent, "mounted": report.mounted,
                    "kept": report.kept, "bytes": report.size_sent})  # fmt: skip
    else:
        print_result(str(digest) if settings.quiet else f"Pushed {digest}")


@verb("login", examples=["kitfs login registry.example.com -u me --password-stdin < token"],
      short_help="Log in to a registry.")  # fmt: skip
@click.argument("registry")
@click.option("-u", "--username", help="The user name.")
@click.option("-p", "--password", help="The password or token; better by --password-stdin: others can see this one.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@network_options
def login(settings: Settings, registry: str, username: str | None, password: str | None, password_stdin: bool,
          network: Network) -> None:  # fmt: skip
    """Check a user name and a password with REGISTRY and keep them, in a file that only you can read."""
    from kitfs.transfer.registry.credentials import Credential, own_file, store_credential

    host = _host(registry)
    if password_stdin and password is not None:
        raise click.UsageError("--password and --password-stdin exclude each other")
    if password_stdin:
        password = sys.stdin.read(_PASSWORD_SIZE_MAX).rstrip("\r\n")
    username = username or click.prompt("Username", err=True)
    password = password or click.prompt("Password", hide_input=True, err=True)
    if ":" in username:
        raise UsageError("a user name has no colon")
    credential = Credential(username, password)
    network.connect(settings, host).with_credential(credential).check()
    store_credential(host, credential)
    say(f"the credential is in {own_file()}, unencrypted")
    print_result("Log in successful")


@verb("logout", short_help="Forget the credential of a registry.")
@click.argument("registry")
@network_options
def logout(settings: Settings, registry: str, network: Network) -> None:
    """Remove what login has kept of REGISTRY; credentials of kit, docker and podman stay."""
    from kitfs.transfer.registry.credentials import store_credential

    if not store_credential(_host(registry), None):
        warn(f"not logged in to {registry}")
        return
    print_result(f"Successfully logged out from {registry}")


def _host(text: str) -> str:
    """A registry's host with its port."""
    from kitfs.oci.reference import parse_reference

    host = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    found = parse_reference(f"{host}/x").host
    if found != host:
        raise UsageError(f"{text!r} names no registry")
    return host
