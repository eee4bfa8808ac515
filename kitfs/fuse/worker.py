"""The worker process: serves one mount, from a session's record alone.

Forked by ``kitfs.daemon.zygote``, and by nobody else. It takes orders from the daemon on a SOCK_SEQPACKET socket
(``kitfs.fuse.orders``), opens store and session after the fork, takes the device over, answers the daemon's questions,
and ends when the device is gone. The first worker of a session also makes it, before anything is mounted: what that
needs is imported here already, and would cost the client 24 ms. When the daemon dies a worker goes on serving.

It never opens or stats a path below a mount, starts no process, and lets no descriptor be inherited: a process that
holds both a mount's device and a file below it hangs in exit, unkillable.

Privilege: no capabilities from the start, no way to new ones, not dumpable. The store belongs to its uid, and that is
all it needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import signal
import socket
import struct
from pathlib import Path
from typing import NoReturn

import msgspec
import trio

from kitfs import logs
from kitfs.calls import PrepareAnswer, PrepareCall
from kitfs.control import Refusal, parse_descriptors
from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.fuse import interpose
from kitfs.fuse.adoption import Lifeline, find_daemon
from kitfs.fuse.deliveries import Deliveries
from kitfs.fuse.guard import Counters
from kitfs.fuse.handover import Handover, run_session
from kitfs.fuse.memory import COUNTERS, SessionMemory
from kitfs.fuse.operations import KitOperations
from kitfs.fuse.orders import (
    DATAGRAM_SIZE_MAX,
    SERVE_DESCRIPTORS,
    BackingAnswer,
    HoldOrder,
    Order,
    PrepareOrder,
    ServeOrder,
    WorkerMessage,
)
from kitfs.fuse.passthrough import BackingClient
from kitfs.layer.span_pool import shared_pool
from kitfs.modelkit.served import NativeShare
from kitfs.modelkit.sessions import prepare_session
from kitfs.modelkit.view import View, open_view
from kitfs.oci.reference import parse_reference
from kitfs.store.quota import parse_quota
from kitfs.store.sessions import HeldSession, SessionOptions
from kitfs.store.store import Store
from kitfs.transfer.kit_refresh import is_import_due

log = logging.getLogger(__name__)

_QUESTION_SIZE_MAX = 4096
_ORDER: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_QUESTIONS = ("probe", "stats")
_WARM_AFTER_S = 0.05
_WARM_SUCCESSOR_AFTER_S = 1.0
"""A successor has readers that wait for it already, and other successors beside it that start."""

_FAILED = 70
"""Exit code of a worker that could not serve (EX_SOFTWARE, sysexits.h)."""

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
"""``linux/prctl.h`` and ``linux/capability.h``."""


def run_worker(*, home: Path, control: int) -> NoReturn:
    """Carry orders out until the mount is gone, then end the process: 0 when it is gone, 70 when it went wrong.

    Args:
        home: The store.
        control: A SOCK_SEQPACKET socket to the daemon.
    """
    code = _FAILED
    connection = socket.socket(fileno=control)
    try:
        order, descriptors = receive_order(connection)
        if order is not None:
            _prepare_process()
            with Store.open(home, create=False) as store:
                _carry_out(store, order, descriptors, connection)
        code = 0
    except (KitfsError, OSError) as error:
        log.error("%s", error)
        _report_failure(connection, error)
    except BaseException as error:  # nothing may return into the zygote from its child
        log.exception("a worker ends")
        _report_failure(connection, error)
    logging.shutdown()
    os._exit(code)


def receive_order(connection: socket.socket) -> tuple[Order | None, list[int]]:
    """The next order and what came with it, or None when the daemon has closed its end."""
    room = socket.CMSG_LEN(4 * SERVE_DESCRIPTORS)
    try:
        raw, ancillary, _, _ = connection.recvmsg(DATAGRAM_SIZE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    return _ORDER.decode(raw) if raw else None, parse_descriptors(ancillary)


def _carry_out(store: Store, order: Order, descriptors: list[int], connection: socket.socket) -> None:
    if not isinstance(order, PrepareOrder):
        with store.open_session(order.session) as session:
            logs.name_subject(session.id, session.record.reference, everywhere=True)
            store.quota = parse_quota(session.record.options.size_max)
            view = open_view(store, session)
            if isinstance(order, HoldOrder):
                _say(connection, WorkerMessage(prepared=PrepareAnswer(session.id, session.record.reference)))
                following, descriptors = receive_order(connection)
            else:
                following = order
            if isinstance(following, ServeOrder):
                _serve_session(view, session, following, descriptors, connection)
        return
    if _is_import_due(store, order.call):
        _say(connection, WorkerMessage(prepared=PrepareAnswer(import_first=True)))
        return
    store.quota = parse_quota(order.call.size_max)
    with _prepare(store, order) as session:
        logs.name_subject(session.id, session.record.reference, everywhere=True)
        view = open_view(store, session)
        _say(connection, WorkerMessage(prepared=PrepareAnswer(session.id, session.record.reference)))
        following, descriptors = receive_order(connection)
        if isinstance(following, ServeOrder):
            _serve_session(view, session, following, descriptors, connection)
        else:
            store.end_session(session.id)


def _is_import_due(store: Store, call: PrepareCall) -> bool:
    return bool(call.reference and call.kitops_home) and is_import_due(
        store, Path(call.kitops_home), parse_reference(call.reference)
    )


def _prepare(store: Store, order: PrepareOrder) -> HeldSession:
    call = order.call
    return prepare_session(
        store,
        parse_reference(call.reference) if call.reference else None,
        session_id=order.session,
        mountpoint=Path(call.mountpoint),
        uid=order.uid,
        gid=order.gid,
        options=SessionOptions(call.modes, call.meta, call.materialise, call.size_max),
        filters=call.filters,
        manifests=[Digest.parse(manifest) for manifest in call.manifests],
        staging=call.staging,
    )


def _serve_session(
    view: View, session: HeldSession, order: ServeOrder, descriptors: list[int], connection: socket.socket
) -> None:
    device, init, memory_fd = descriptors
    memory = SessionMemory.map(memory_fd)
    memory.lock_life()
    deliveries = Deliveries(memory.deliveries)
    in_hand = deliveries.blame(order.blame)
    if in_hand:
        log.info("the worker before had %d requests in hand", in_hand)
    handover = Handover(device=device, init=init, resend=order.resend)
    lifeline = None
    if order.socket:
        home = session.layout.home
        lifeline = Lifeline(home, Path(order.socket), order.may_start, memory, init, session.fileno())
    serve(view, handover, connection, deliveries, Counters(memory.counters), lifeline, memory.opens)


def serve(
    view: View,
    handover: Handover,
    connection: socket.socket,
    deliveries: Deliveries,
    counters: Counters,
    lifeline: Lifeline | None = None,
    opens: memoryview | None = None,
) -> None:
    """Serve a view on a connection until that is gone. Runs a trio loop of its own.

    Args:
        view: What is shown.
        handover: The connection.
        connection: The control socket.
        deliveries: Where requests are noted that are in hand.
        counters: Where it counts.
        lifeline: Whom to turn to when the daemon is gone, None for nobody.
        opens: Where the open table lies, None for one of its own.

    Raises:
        HandoverFailed: when the device can not be taken over.
    """
    client = BackingClient("the extension is not there" if interpose.load() is None else "")
    operations = KitOperations(view, handover.take, deliveries, counters, opens, client)
    trio.run(_serve, view, handover, connection, operations, client, lifeline)


async def _serve(
    view: View,
    handover: Handover,
    connection: socket.socket,
    operations: KitOperations,
    client: BackingClient,
    lifeline: Lifeline | None,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_answer_daemons, view, handover, connection, operations.counters, client, lifeline)
        nursery.start_soon(_warm, view, handover)
        await run_session(operations, handover)
        nursery.cancel_scope.cancel()


async def _warm(view: View, handover: Handover) -> None:
    """Read what the first reader would wait for, once the listing that ends a mount has had its time."""
    await handover.taken.wait()
    await trio.sleep(_WARM_SUCCESSOR_AFTER_S if handover.resend else _WARM_AFTER_S)
    try:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(view.warm)
    except (KitfsError, OSError) as error:
        log.info("%s", error)  # whoever opens a file of it hears of it


async def _answer_daemons(
    view: View,
    handover: Handover,
    connection: socket.socket,
    counters: Counters,
    client: BackingClient,
    lifeline: Lifeline | None,
) -> None:
    """Say when it serves, then answer one daemon after the other."""
    await handover.taken.wait()
    daemon = trio.socket.from_stdlib_socket(connection)
    with contextlib.suppress(OSError):
        await daemon.send(b'{"ready": true}')
    while True:
        client.attach(daemon.fileno())
        await _answer_daemon(view, daemon, counters, client)
        daemon.close()
        if lifeline is None:
            return
        daemon = await find_daemon(lifeline)
        log.info("another daemon has taken this session over")


async def _answer_daemon(view: View, daemon: trio.socket.SocketType, counters: Counters, client: BackingClient) -> None:
    """Answer questions; returns when the daemon is gone.

    Counters may wait for the index, that it is alive for nothing: a worker on a slow disk is not hung.
    """

    async def tell_counters() -> None:
        share = await trio.to_thread.run_sync(_measure_native, view)
        with contextlib.suppress(OSError):
            await daemon.send(encode_counters(counters, share))

    async with trio.open_nursery() as nursery:
        try:
            while datagram := await daemon.recv(_QUESTION_SIZE_MAX):
                match parse_question(datagram):
                    case "stats":
                        nursery.start_soon(tell_counters)
                    case "probe":
                        await daemon.send(b'{"alive": true}')
                    case _:
                        take_backing_answer(datagram, client)
        except OSError as error:
            log.info("the daemon is gone: %s", error)
        client.lose_daemon()


def take_backing_answer(datagram: bytes, client: BackingClient) -> None:
    """Hand on the answer to a question of ours; anything else is passed over."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        client.take(msgspec.json.decode(datagram, type=BackingAnswer))


def parse_question(datagram: bytes) -> str:
    """What a datagram asks for: ``stats``, ``probe``, or nothing that is understood, which is passed over."""
    try:
        question = json.loads(datagram)
    except (ValueError, RecursionError):
        return ""
    known = [name for name in _QUESTIONS if isinstance(question, dict) and question.get(name) is True]
    return known[0] if known else ""


def _measure_native(view: View) -> NativeShare:
    try:
        return view.measure_native()
    except KitfsError as error:
        log.warning("how much is native is not known: %s", error)
        return NativeShare(0, 0, False)


def encode_counters(counters: Counters, share: NativeShare) -> bytes:
    """The answer to a question for counters: the share of native bytes is rounded down, so that 1 is all of them."""
    native = share.native * 10_000 // share.size / 10_000 if share.size else 0.0
    state = "native" if native == 1 else "partial" if share.is_begun else "lazy"
    counters.note_spans(shared_pool().decoded_count)
    answer: dict[str, float | str] = {name: getattr(counters, name) for name in COUNTERS}
    return json.dumps({**answer, "native": native, "state": state}).encode()


def drop_capabilities() -> None:
    """Give up all capabilities of the calling thread and of every thread that it starts later.

    With no_new_privs set, no program that it might execute gets them back.

    Raises:
        OSError: when the kernel refuses, which it does not for fewer than there are (capset(2)).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if libc.capset(header, bytes(24)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "capset")


def _prepare_process() -> None:
    os.chdir("/")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    drop_capabilities()


def _report_failure(connection: socket.socket, error: BaseException) -> None:
    if not isinstance(error, KitfsError):
        error = KitfsError(f"{error}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
    _say(connection, WorkerMessage(failed=Refusal.of(error)))


def _say(connection: socket.socket, message: WorkerMessage) -> None:
    try:
        connection.send(msgspec.json.encode(message))
    except OSError as gone:
        log.info("the daemon is gone: %s", gone)
