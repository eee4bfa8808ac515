"""Time limits of the control server, in this process, on a clock that jumps."""

import contextlib
import socket

import trio

from kitfs import control
from kitfs.calls import Nothing
from kitfs.daemon import server
from kitfs.daemon.forker import Forker
from kitfs.daemon.keepers import Keepers
from kitfs.daemon.server import Server
from kitfs.daemon.table import Table

PING = control.encode_call("Ping", Nothing())


async def serve(nursery, home, runtime):
    """A server at ``runtime / "s"`` for as long as the nursery lives."""
    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(runtime / "s"))
    listener.listen(100)
    table = Table(home, Keepers(Forker(home)), nursery)

    async def run():
        with listener:
            await Server(table, str(home), lambda: None).serve(listener)

    nursery.start_soon(run)


async def test_a_peer_that_is_too_slow_with_its_call_is_cut_off(home, runtime, autojump_clock):
    """A byte every now and then does not keep a connection alive for longer than the limit."""
    async with trio.open_nursery() as nursery:
        await serve(nursery, home, runtime)
        began = trio.current_time()
        async with await trio.open_unix_socket(str(runtime / "s")) as peer:
            with contextlib.suppress(trio.BrokenResourceError):
                for byte in PING:
                    await peer.send_all(bytes([byte]))
                    await trio.sleep(1)
        assert server.CALL_TIMEOUT_S <= trio.current_time() - began <= server.CALL_TIMEOUT_S + 2
        nursery.cancel_scope.cancel()


async def test_a_peer_that_takes_no_answers_is_cut_off(home, runtime, autojump_clock):
    """Answers that nobody reads end the connection when they have filled its buffers."""
    async with trio.open_nursery() as nursery:
        await serve(nursery, home, runtime)
        async with await trio.open_unix_socket(str(runtime / "s")) as peer:
            with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(server.CALL_TIMEOUT_S * 3):
                while True:
                    await peer.send_all(PING * 100)
        nursery.cancel_scope.cancel()
