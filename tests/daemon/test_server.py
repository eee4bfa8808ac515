"""Hostile and odd peers at the control socket of a real daemon: bounded, refused by name, and others are served."""

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kitfs import control
from kitfs.calls import MountCall, Nothing, PingAnswer
from kitfs.control import ControlConnection, DaemonUnreachable
from kitfs.errors import KitfsError, MalformedError, UsageError

PING = control.encode_call("Ping", Nothing())


def connect(daemon) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(30)
    peer.connect(str(daemon.path))
    return peer


def receive(peer: socket.socket) -> bytes:
    """Everything up to a NUL or the end."""
    said = b""
    while not said.endswith(b"\0"):
        piece = peer.recv(65536)
        if not piece:
            break
        said += piece
    return said


def is_answered(said: bytes) -> bool:
    return control.parse_answer(said.rstrip(b"\0"), PingAnswer).pid > 0


def mount(daemon, call: MountCall, descriptor: int) -> None:
    """``Mount`` on a connection that has prepared nothing."""
    with ControlConnection.connect(daemon.path) as connection:
        connection.call("Mount", call, Nothing, descriptors=[descriptor])


def memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_several_calls_on_one_connection_are_answered_in_turn(daemon):
    """Varlink: calls may be sent without waiting for answers."""
    with connect(daemon) as peer:
        peer.sendall(PING * 3)
        said = b""
        while said.count(b"\0") < 3:
            said += peer.recv(65536)
        assert all(is_answered(answer) for answer in said.split(b"\0")[:3])


def test_a_call_that_arrives_byte_by_byte_is_answered(daemon):
    """Pieces of any size make a call."""
    with connect(daemon) as peer:
        for byte in PING:
            peer.send(bytes([byte]))
        assert is_answered(receive(peer))


def test_a_peer_that_closes_its_sending_half_gets_its_answer(daemon):
    """Half-close after a whole call is a way to end a conversation; inside one it ends it."""
    with connect(daemon) as peer:
        peer.sendall(PING)
        peer.shutdown(socket.SHUT_WR)
        assert is_answered(receive(peer))
        assert peer.recv(1) == b""
    with connect(daemon) as peer:
        peer.sendall(PING[:10])
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\r\n\r\n\0", b"\0", b"[" * 60000 + b"\0", b"\xff\xfe\0"])
def test_what_is_not_json_is_refused_and_the_connection_ends(daemon, line):
    """A named error, then the end; the daemon serves on."""
    with connect(daemon) as peer:
        peer.sendall(line)
        with pytest.raises(MalformedError):
            control.parse_answer(receive(peer).rstrip(b"\0"), Nothing)
        assert peer.recv(1) == b""
    daemon.ping()


@pytest.mark.parametrize("method", ["org.kitfs.Control.Nope", "Ping", "org.other.Ping", "org.kitfs.Control.serve", ""])
def test_an_unknown_method_is_refused_by_name(daemon, method):
    """Only the methods of the interface can be called."""
    with connect(daemon) as peer:
        peer.sendall(b'{"method": "%s"}\0' % method.encode())
        with pytest.raises(UsageError, match="no method"):
            control.parse_answer(receive(peer).rstrip(b"\0"), Nothing)


def test_a_line_of_a_gibibyte_is_cut_off_and_costs_no_memory(daemon):
    """After 64 KiB without a NUL the connection ends; less than 64 MiB stay with the daemon."""
    pid = daemon.ping().pid
    before = memory_kib(pid)
    piece = b"x" * (1 << 20)
    sent = 0
    with connect(daemon) as peer:
        try:
            while sent < 1 << 30:
                sent += peer.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < 16 << 20
    assert memory_kib(pid) - before < 64 << 10
    daemon.ping()


def test_ten_thousand_silent_connections_leave_others_served(daemon):
    """The ones that were silent longest make room; descriptors of the daemon stay bounded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(12000, hard), hard))
    pid = daemon.ping().pid
    peers = []
    try:
        for number in range(10_000 if hard >= 12000 else 900):
            peers.append(connect(daemon))
            if number % 1000 == 0:
                begun = time.monotonic()
                daemon.ping()
                assert time.monotonic() - begun < 2
        daemon.ping()
        assert len(os.listdir(f"/proc/{pid}/fd")) < 400
    finally:
        for peer in peers:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    daemon.ping()


@pytest.mark.root
def test_another_user_is_not_heard(daemon):
    """Even where the socket's mode would let it, a peer that is neither the daemon's uid nor root is cut off."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    daemon.path.parent.parent.chmod(0o711)
    daemon.path.parent.chmod(0o711)
    daemon.path.chmod(0o666)
    script = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "peer = socket.socket(socket.AF_UNIX); peer.settimeout(30); peer.connect(sys.argv[1])\n"
        "try:\n    peer.sendall(sys.argv[2].encode() + b'\\0'); print(peer.recv(100))\n"
        "except (BrokenPipeError, ConnectionResetError):\n    print(b'')\n"
    )
    command = [sys.executable, "-c", script, str(daemon.path), PING[:-1].decode()]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "b''"
    daemon.ping()


def test_a_descriptor_that_is_not_dev_fuse_is_refused_and_closed(daemon):
    """By name; nothing stays open in the daemon."""
    pid = daemon.ping().pid
    before = len(os.listdir(f"/proc/{pid}/fd"))
    call = MountCall("a1", "0:1")
    with open("/dev/null", "rb") as null:
        for _ in range(20):
            with pytest.raises(KitfsError, match="not /dev/fuse"):
                mount(daemon, call, null.fileno())
    daemon.ping()
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 2


def test_a_call_that_needs_the_device_and_has_none_is_refused(daemon):
    """Mount without a descriptor is a usage error."""
    with connect(daemon) as peer:
        peer.sendall(control.encode_call("Mount", MountCall("a1", "0:1")))
        with pytest.raises(UsageError, match="needs the descriptor"):
            control.parse_answer(receive(peer).rstrip(b"\0"), Nothing)


def test_several_descriptors_are_refused_and_closed(daemon):
    """One per call, four where a session is handed over, whether they come at once or piece by piece."""
    pid = daemon.ping().pid
    before = len(os.listdir(f"/proc/{pid}/fd"))
    with open("/dev/null", "rb") as null:
        with connect(daemon) as peer:
            peer.sendmsg([PING], control.encode_descriptors([null.fileno()] * 3))
            with pytest.raises(UsageError, match="at most one"):
                control.parse_answer(receive(peer).rstrip(b"\0"), Nothing)
        with connect(daemon) as peer:
            for byte in (b"{", b'"', b"m", b"e", b"t"):
                peer.sendmsg([byte], control.encode_descriptors([null.fileno()]))
            with pytest.raises(UsageError, match="at most one"):
                control.parse_answer(receive(peer).rstrip(b"\0"), Nothing)
    daemon.ping()
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 2


@pytest.mark.parametrize("session", ["", "../../etc/passwd", "a" * 300, "no-such-session", "x\n"])
def test_a_session_that_is_not_there_is_refused_by_name(daemon, session):
    """Only what its own connection has prepared can be mounted, whatever else a name means."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("/dev/fuse can not be opened")
    try:
        with pytest.raises(KitfsError, match="no session"):
            mount(daemon, MountCall(session, "0:1"), device)
    finally:
        os.close(device)
    assert daemon.list_mounts() == []


def test_waiting_for_a_session_that_is_not_there_ends_at_once(daemon):
    """Gone is gone."""
    assert daemon.wait_ended("no-such-session")


def test_a_daemon_that_is_killed_inside_a_call_is_named(daemon, wait_for_end):
    """The client says that nobody answers, and the next command starts another daemon."""
    pid = daemon.ping().pid
    os.kill(pid, 9)
    wait_for_end(pid)
    with pytest.raises(DaemonUnreachable):
        daemon.ping()
