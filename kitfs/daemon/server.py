"""The control server: bounded conversations over the daemon's unix socket.

Used by ``kitfs.daemon.service``. Only the daemon's own uid and root are heard (SO_PEERCRED). A connection has
``CALL_TIMEOUT_S`` for each whole call and no more than ``MESSAGE_SIZE_MAX`` bytes for it; when ``CONNECTIONS_MAX``
are open, the one that has been silent longest makes room for the next. Nothing here touches a mount.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from kitfs import __version__, control
from kitfs.calls import (
    AdoptCall,
    HandOverAnswer,
    HandOverCall,
    ListAnswer,
    MountCall,
    Nothing,
    PingAnswer,
    PrepareAnswer,
    PrepareCall,
    StatusAnswer,
    WaitEndedAnswer,
    WaitEndedCall,
)
from kitfs.control import MessageMalformed
from kitfs.daemon.kept import KEPT_DESCRIPTORS, KeptSet
from kitfs.daemon.prepared import Prepared
from kitfs.daemon.table import Table
from kitfs.daemon.takeover import hand_over
from kitfs.errors import BusyError, KitfsError, UsageError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
CALL_TIMEOUT_S = 10.0
"""For sending a whole call, and for taking an answer."""

MOUNT_TIMEOUT_S = 60.0
"""From the answer to ``Prepare`` to the whole ``Mount``: the client runs fusermount3, which takes 2 ms."""

WAIT_MAX_S = 60.0
HAND_OVER_TIMEOUT_S = 10.0
"""For mounts that are being made when another daemon takes over, and for that one to take each."""

_PIECE_SIZE = 16 << 10
_ROOM = socket.CMSG_LEN(4 * control.ADOPT_DESCRIPTORS_MAX)
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class MethodUnknown(UsageError):
    """A method that this daemon does not have."""


class DescriptorRefused(UsageError):
    """A descriptor where none belongs, none where one does, several, or not /dev/fuse."""


class NotPrepared(UsageError):
    """``Mount`` of a session that its connection has not prepared, or ``Prepare`` where one is prepared."""


class AdoptRefused(UsageError):
    """``Adopt`` of what is no session, or by a process that is not its worker."""


class DaemonBusy(BusyError):
    """The daemon can not do this now."""


class _Conversation:
    """One connection: what was received of the next call, the descriptors that came with it, what it has prepared."""

    def __init__(self, stream: trio.socket.SocketType) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        self.answering = False
        self.prepared: Prepared | None = None
        self.afterwards: Callable[[], Awaitable[None]] | None = None
        self._framer = control.Framer()
        self._descriptors: list[int] = []

    async def receive(self) -> bytes | None:
        """The next call, or None when the peer has closed its end."""
        while (message := self._framer.find_message()) is None:
            piece, ancillary, flags, _ = await self.stream.recvmsg(_PIECE_SIZE, _ROOM, socket.MSG_CMSG_CLOEXEC)
            self._descriptors += control.parse_descriptors(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > control.ADOPT_DESCRIPTORS_MAX:
                raise DescriptorRefused("a call carries at most one descriptor")
            if not piece:
                return None
            self._framer.feed(piece)
        return message

    def take_device(self) -> int:
        """The descriptor that came with the call; the caller closes it.

        Raises:
            DescriptorRefused: when there is none, or it is not /dev/fuse.
        """
        if not self._descriptors:
            raise DescriptorRefused("the call needs the descriptor of /dev/fuse")
        if not control.is_fuse_device(self._descriptors[0]):
            raise DescriptorRefused("the descriptor that came along is not /dev/fuse")
        return self._descriptors.pop()

    def check_descriptors(self, count: int) -> None:
        """See that no more have come than a call may have.

        Raises:
            DescriptorRefused: when it is so.
        """
        if len(self._descriptors) > count:
            raise DescriptorRefused("a call carries at most one descriptor")

    def take_descriptors(self) -> list[int]:
        """All that came with the call; the caller closes them."""
        taken, self._descriptors = self._descriptors, []
        return taken

    async def answer(self, raw: bytes) -> None:
        """Send an answer, within ``CALL_TIMEOUT_S``."""
        with trio.fail_after(CALL_TIMEOUT_S):
            while raw:
                raw = raw[await self.stream.send(raw) :]

    def close(self) -> None:
        """Close the connection and every descriptor that nobody took."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self.stream.close()


class Server:
    """Answers calls about the mounts of one table.

    Args:
        table: The sessions.
        home: The store, as ``Ping`` tells it.
        stop: Called when ``Stop`` was granted.
        leave: Ends the process and leaves its mounts to another daemon; None when that is a service manager's.
        idle_s: For how long the daemon outlives its last mount.
        describe: Says how the daemon is; without it there is no ``Status``.
    """

    def __init__(
        self,
        table: Table,
        home: str,
        stop: Callable[[], None],
        describe: Callable[[], Awaitable[StatusAnswer]] | None = None,
        *,
        leave: Callable[[], None] | None = None,
        idle_s: float = 0.0,
    ) -> None:
        self._table = table
        self._home = home
        self._stop = stop
        self._leave = leave
        self._idle_s = idle_s
        self._stopping = False
        self._conversations: dict[_Conversation, None] = {}
        self._methods: dict[str, Callable[[_Conversation, control.Call], Awaitable[Any]]] = {
            "Adopt": self._adopt,
            "HandOver": self._hand_over,
            "List": self._list,
            "Mount": self._mount,
            "Ping": self._ping,
            "Prepare": self._prepare,
            "Stop": self._grant_stop,
            "WaitEnded": self._wait_ended,
        }
        if describe is not None:
            self._methods["Status"] = lambda _conversation, _call: describe()

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Accept connections until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream, _ = await listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF_DESCRIPTORS:
                        raise
                    log.error("a connection can not be accepted: %s", error)
                    if not self._make_room():
                        await trio.sleep(0.1)
                    continue
                self._admit(stream, nursery)

    def _admit(self, stream: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        uid = control.peer_owner(stream)[0]
        if uid not in (0, os.geteuid()):
            log.warning("a connection of uid %d was refused", uid)
            stream.close()
            return
        if len(self._conversations) >= CONNECTIONS_MAX and not self._make_room():
            stream.close()
            return
        conversation = _Conversation(stream)
        self._conversations[conversation] = None
        nursery.start_soon(self._converse, conversation)

    def _make_room(self) -> bool:
        """End the connection that has waited longest without a whole call. False when all are being answered."""
        for conversation in self._conversations:
            if not conversation.answering and conversation.prepared is None:
                del self._conversations[conversation]
                conversation.scope.cancel()
                return True
        return False

    async def _converse(self, conversation: _Conversation) -> None:
        try:
            with conversation.scope:
                await self._answer_calls(conversation)
        except (OSError, trio.TooSlowError) as error:
            log.info("a connection ended: %r", error)
        finally:
            self._conversations.pop(conversation, None)
            if conversation.prepared is not None:
                await self._table.abandon(conversation.prepared)
            conversation.close()

    async def _answer_calls(self, conversation: _Conversation) -> None:
        while True:
            try:
                with trio.fail_after(MOUNT_TIMEOUT_S if conversation.prepared else CALL_TIMEOUT_S):
                    message = await conversation.receive()
                if message is None:
                    return
                conversation.answering = True
                answer = control.encode_answer(
                    await self._dispatch(conversation, control.parse_parameters(message, control.Call))
                )
            except (MessageMalformed, DescriptorRefused) as error:
                await conversation.answer(control.encode_refusal(error))
                return
            except KitfsError as error:
                answer = control.encode_refusal(error)
            await conversation.answer(answer)
            conversation.answering = False
            if conversation.afterwards is not None:
                afterwards, conversation.afterwards = conversation.afterwards, None
                await afterwards()
            if self._stopping:
                self._stop()

    async def _dispatch(self, conversation: _Conversation, call: control.Call) -> Any:
        interface, _, name = call.method.rpartition(".")
        method = self._methods.get(name)
        if interface != control.INTERFACE or method is None:
            raise MethodUnknown(f"the daemon has no method {call.method[:100]!r}")
        conversation.check_descriptors(control.ADOPT_DESCRIPTORS_MAX if name == "Adopt" else 1)
        return await method(conversation, call)

    async def _ping(self, _conversation: _Conversation, _call: control.Call) -> PingAnswer:
        return PingAnswer(__version__, os.getpid(), self._home, is_service=self._leave is None)

    async def _adopt(self, conversation: _Conversation, call: control.Call) -> Nothing:
        descriptors = conversation.take_descriptors()
        connection = None
        if len(descriptors) > KEPT_DESCRIPTORS and stat.S_ISSOCK(os.fstat(descriptors[-1]).st_mode):
            connection = socket.socket(fileno=descriptors.pop())
        try:
            kept = KeptSet.of(descriptors)
            try:
                parameters = control.parse_parameters(call.parameters, AdoptCall)
                if parameters.session != kept.session:
                    raise AdoptRefused(f"the memory is that of session {kept.session}")
            except BaseException:
                kept.close()
                raise
            session = self._table.adopt(kept)
            if connection is not None:
                worker, connection = connection, None
                if not session.attach(control.peer_pid(conversation.stream), worker):
                    raise AdoptRefused("who calls is not the session's worker")
                if parameters.version != __version__:
                    self._table.replace(session)
        finally:
            if connection is not None:
                connection.close()
        return Nothing()

    async def _hand_over(self, conversation: _Conversation, call: control.Call) -> HandOverAnswer:
        parameters = control.parse_parameters(call.parameters, HandOverCall)
        descriptors = conversation.take_descriptors()
        if len(descriptors) != 1 or not stat.S_ISSOCK(os.fstat(descriptors[0]).st_mode):
            for descriptor in descriptors:
                os.close(descriptor)
            raise DescriptorRefused("the call needs a socket to hand over")
        successor = trio.socket.socket(fileno=descriptors[0])
        if self._leave is None:
            successor.close()
            error = DaemonBusy("a service manager keeps this daemon")
            error.hint = "systemctl restart kitfs   (or how your service manager restarts it)"
            raise error
        if not await self._table.wait_settled(HAND_OVER_TIMEOUT_S):
            successor.close()
            raise DaemonBusy("a mount is just being made")
        kept = self._table.copies()
        log.info("%d mount(s) are handed over to a daemon of version %s", len(kept), parameters.version)
        conversation.afterwards = functools.partial(hand_over, kept, successor, self._leave)
        return HandOverAnswer(os.getpid(), len(kept), self._idle_s)

    async def _list(self, _conversation: _Conversation, _call: control.Call) -> ListAnswer:
        return ListAnswer(await self._table.states())

    async def _prepare(self, conversation: _Conversation, call: control.Call) -> PrepareAnswer:
        parameters = control.parse_parameters(call.parameters, PrepareCall)
        if conversation.prepared is not None:
            raise NotPrepared("a session is prepared on this connection already")
        prepared = conversation.prepared = await self._table.prepare(
            parameters, *control.peer_owner(conversation.stream)
        )
        if prepared is None:
            return PrepareAnswer(import_first=True)
        return PrepareAnswer(prepared.session, prepared.reference)

    async def _mount(self, conversation: _Conversation, call: control.Call) -> Nothing:
        parameters = control.parse_parameters(call.parameters, MountCall)
        device = conversation.take_device()
        prepared = conversation.prepared
        if prepared is None or prepared.session != parameters.session:
            os.close(device)
            raise NotPrepared(f"no session {parameters.session[:100]!r} is prepared on this connection")
        conversation.prepared = None
        await self._table.mount(prepared, parameters, device)
        return Nothing()

    async def _wait_ended(self, _conversation: _Conversation, call: control.Call) -> WaitEndedAnswer:
        parameters = control.parse_parameters(call.parameters, WaitEndedCall)
        timeout_s = min(max(parameters.timeout_s, 0.0), WAIT_MAX_S)
        return WaitEndedAnswer(await self._table.wait_ended(parameters.session, timeout_s))

    async def _grant_stop(self, _conversation: _Conversation, _call: control.Call) -> Nothing:
        if len(self._table):
            error = DaemonBusy(f"the daemon serves {len(self._table)} mount(s)")
            error.hint = "kitfs umount --all"
            raise error
        self._stopping = True
        return Nothing()
