"""Where metrics may be served: this machine's own addresses, and nothing else."""

from pathlib import Path

import pytest

from kitfs.daemon.address import AddressRefused, parse_address


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", None),
        ("off", None),
        ("/run/kitfs/metrics.sock", Path("/run/kitfs/metrics.sock")),
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("127.8.9.1:80", ("127.8.9.1", 80)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_addresses_of_this_machine_are_understood(text, place):
    """A socket's path, or a port of the loopback device."""
    assert parse_address(text) == place


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0:9464", "[::]:9464", "192.168.0.1:9464", "example.com:9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536",
     "::1:9464", "[::1]", "localhost.example.com:1", "9464:9464", "relative.sock", "/" + "x" * 107, "/a\0b", "on",
     "127.0.0.1:9464/x", "127.1:9464", "[::ffff:10.0.0.1]:1", "\u0661:1", "127.0.0.1:\u0661"],
)  # fmt: skip
def test_what_is_not_this_machines_own_is_refused(text):
    """Other machines, names, ports that there are not, and paths that no socket can have."""
    with pytest.raises(AddressRefused):
        parse_address(text)
