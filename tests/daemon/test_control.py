"""Messages, framing, and the place of the socket: pure, or on the disk alone."""

import contextlib
import os
import socket
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs import control, errors
from kitfs.calls import ListAnswer, MountCall, MountState, Nothing, PingAnswer
from kitfs.control import Answer, ControlConnection, Framer, MessageMalformed, SocketUntrusted
from kitfs.mounting import MountBusy

CALLS = [b'{"method": "a"}', b"", b"x" * 1000, b'{"method": "b", "parameters": {}}']


@given(st.lists(st.integers(0, 1100), max_size=12))
def test_messages_do_not_depend_on_the_pieces_that_arrive(cuts):
    """Any cutting of the stream gives the same messages."""
    stream = b"".join(call + b"\0" for call in CALLS)
    framer, found, start = Framer(), [], 0
    for stop in [*sorted(cuts), len(stream)]:
        framer.feed(stream[start:stop])
        start = max(start, stop)
        while (message := framer.find_message()) is not None:
            found.append(message)
    assert found == CALLS


def test_a_message_of_the_greatest_length_passes_and_one_byte_more_is_refused():
    """The limit is exact, and is noticed before the NUL comes."""
    framer = Framer()
    framer.feed(b"x" * control.MESSAGE_SIZE_MAX + b"\0")
    assert len(framer.find_message() or b"") == control.MESSAGE_SIZE_MAX
    with pytest.raises(MessageMalformed):
        framer.feed(b"x" * (control.MESSAGE_SIZE_MAX + 1))


@pytest.mark.parametrize(
    "message",
    [b"", b"nonsense", b"[]", b"{}", b'{"method": 1}', b'{"method": "x", "parameters": ', b'{"method": "\xff"}',
     b"NaN", b'{"method": "x", "parameters": ' + b"[" * 30000 + b"}", "{}".encode("utf-16")],
)  # fmt: skip
def test_what_is_no_call_is_refused_with_a_named_error(message):
    """Bad JSON, bad UTF-8, missing fields and depth are all ``MessageMalformed``."""
    with pytest.raises(MessageMalformed):
        call = control.parse_parameters(message, control.Call)
        control.parse_parameters(call.parameters, MountCall)


def test_a_refusal_arrives_as_the_category_it_belongs_to():
    """An error below a category is the category on the other side, with its message and hint."""
    raw = control.encode_refusal(MountBusy(Path("/mnt/model")))
    with pytest.raises(errors.BusyError, match="/mnt/model is in use") as caught:
        control.parse_answer(raw.rstrip(b"\0"), Nothing)
    assert "--lazy" in caught.value.hint


@pytest.mark.parametrize("name", ["org.kitfs.Control.Exception", "org.example.Other", "x", "org.kitfs.Control.errors"])
def test_a_refusal_of_an_unknown_kind_is_a_daemon_error(name):
    """No name from the socket reaches anything but the categories."""
    raw = msgspec.json.encode(Answer(msgspec.Raw(b"{}"), name))
    with pytest.raises(errors.DaemonError):
        control.parse_answer(raw, Nothing)


def test_calls_and_answers_survive_the_way():
    """What is encoded is what is parsed."""
    sent = MountCall("ü", "0:45")
    raw = control.encode_call("Mount", sent)
    assert raw.endswith(b"\0")
    call = control.parse_parameters(raw[:-1], control.Call)
    assert call.method == "org.kitfs.Control.Mount"
    assert control.parse_parameters(call.parameters, MountCall) == sent
    answer = PingAnswer("1", 2, "/h")
    assert control.parse_answer(control.encode_answer(answer)[:-1], PingAnswer) == answer


def test_the_system_store_has_the_system_socket():
    """/var/lib/kitfs is served at /run/kitfs/kitfs.sock, whatever the environment says."""
    assert control.socket_path(Path("/var/lib/kitfs"), environ={"XDG_RUNTIME_DIR": "/x"}) == control.SYSTEM_SOCKET


def test_the_socket_follows_the_real_path_of_the_store(tmp_path):
    """Two names of one store lead to one socket, two stores to two."""
    (tmp_path / "store").mkdir()
    (tmp_path / "alias").symlink_to("store")
    environ = {"XDG_RUNTIME_DIR": "/tmp"}
    uid = Path("/tmp").stat().st_uid
    names = [control.socket_path(tmp_path / name, environ=environ, uid=uid) for name in ("store", "alias", "other")]
    assert names[0] == names[1] != names[2]
    assert names[0].parent == Path("/tmp/kitfs")


@pytest.mark.parametrize("runtime", ["", "relative", "/nowhere/at/all", "/tmp/" + "x" * 100])
def test_without_a_usable_runtime_folder_the_socket_lies_in_tmp(runtime, tmp_path):
    """A runtime folder that is absent, relative or too long is passed over."""
    path = control.socket_path(tmp_path, environ={"XDG_RUNTIME_DIR": runtime}, uid=1234)
    assert path.parent == Path("/tmp/kitfs-1234")


def test_a_runtime_folder_of_somebody_else_is_passed_over(tmp_path):
    """After sudo XDG_RUNTIME_DIR may be another user's, who could swap the socket."""
    path = control.socket_path(tmp_path, environ={"XDG_RUNTIME_DIR": str(tmp_path)}, uid=os.geteuid() + 1)
    assert path.parent == Path(f"/tmp/kitfs-{os.geteuid() + 1}")


def test_override_wins(tmp_path):
    """--socket is taken as it is."""
    assert control.socket_path(tmp_path, tmp_path / "s") == tmp_path / "s"


def test_the_folder_of_a_socket_is_made_for_us_alone(tmp_path):
    """0700, and again when it is there."""
    for _ in range(2):
        control.make_socket_folder(tmp_path / "run" / "kitfs" / "x.sock")
    assert stat.S_IMODE((tmp_path / "run" / "kitfs").stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_or_open_to_others_is_refused(tmp_path):
    """Whoever can write in the folder could put another socket there."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "open"):
        with pytest.raises(SocketUntrusted):
            control.make_socket_folder(tmp_path / name / "x.sock")


def test_what_is_no_socket_is_not_connected_to(runtime):
    """A planted symlink, even to a real socket of ours, and a plain file are refused."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "real"))
        (runtime / "link").symlink_to("real")
        (runtime / "file").touch()
        control.check_socket(runtime / "real")
        for name in ("link", "file"):
            with pytest.raises(SocketUntrusted):
                control.check_socket(runtime / name)


def test_only_dev_fuse_is_taken_for_the_device():
    """Told by device number: other files, pipes and devices are not it."""
    for path in ("/dev/null", "/dev/zero", __file__):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            assert not control.is_fuse_device(descriptor)
        finally:
            os.close(descriptor)


def test_an_answer_about_a_thousand_mounts_arrives():
    """Longer than any call may be: in pieces, and whole; one without an end is refused."""
    states = [MountState("0" * 16, f"/mnt/{'x' * 200}/{number}", "a:1", "0:1") for number in range(1000)]
    ours, theirs = socket.socketpair()
    with ours, theirs, ControlConnection(ours) as connection:
        answer = control.encode_answer(ListAnswer(states))
        assert len(answer) > 4 * control.MESSAGE_SIZE_MAX
        sender = threading.Thread(target=theirs.sendall, args=(answer,))
        sender.start()
        assert connection.call("List", Nothing(), ListAnswer).mounts == states
        sender.join()
    ours, theirs = socket.socketpair()
    with ours, theirs, ControlConnection(ours) as connection:
        endless = threading.Thread(target=_send_until_refused, args=(theirs,))
        endless.start()
        with pytest.raises(MessageMalformed, match=str(control.ANSWER_SIZE_MAX)):
            connection.call("List", Nothing(), ListAnswer)
        connection.close()
        endless.join()


def _send_until_refused(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer.sendall(b"x" * 65536)
