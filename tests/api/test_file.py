"""An open file of a ModelKit behaves as one that builtin ``open`` gives, whatever is done to it."""

import io
import json

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

import kitfs
from kitfs.api.file import STEP_SIZE
from kitfs.cli.main import run
from kitfs.errors import IntegrityError

DATA = bytes(range(256)) * 1500  # three spans
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, len(DATA) + 10)),
        st.tuples(st.just("readinto"), st.integers(0, len(DATA) + 10)),
        st.tuples(st.just("set"), st.integers(0, len(DATA) + 1000)),
        st.tuples(st.just("current"), st.integers(-len(DATA), len(DATA))),
        st.tuples(st.just("end"), st.integers(-len(DATA), 1000)),
        st.tuples(st.just("readline"), st.integers(-1, 400)),
    ),
    max_size=12,
)


@pytest.fixture
def kit(import_kits, make_layout):
    """A ModelKit with a file of three spans, an empty one, and tensors."""
    tensors = save({"a": numpy.arange(100_000, dtype=numpy.float32), "b": numpy.eye(7)})
    numbers = io.BytesIO()
    numpy.save(numbers, numpy.arange(50_000).reshape(100, 500))
    files = {"data.bin": DATA, "empty": b"", "m.safetensors": tensors, "n.npy": numbers.getvalue(), "t": b"1\r\n2\n"}
    home = import_kits(make_layout("kit", "gzip", files), "--copy", "--as", "kit")
    with kitfs.open("kit:1", home=home) as kit:
        yield kit


def apply(file: io.IOBase, name: str, number: int) -> object:
    """One operation; what it gave, or the kind of error."""
    try:
        if name == "readinto":
            buffer = bytearray(number)
            return file.readinto(buffer), bytes(buffer)
        if name in ("read", "readline"):
            return getattr(file, name)(number)
        return file.seek(number, ["set", "current", "end"].index(name))
    except (ValueError, OSError) as error:
        return isinstance(error, ValueError | OSError)


def test_file_does_what_a_file_on_disk_does(kit, tmp_path):
    """Any reads, seeks and fills, in any order, give the same as on a real file, unbuffered and buffered."""
    path, real = kit / "weights/data.bin", tmp_path / "data.bin"
    real.write_bytes(DATA)

    @given(OPERATIONS)
    def run(operations: list[tuple[str, int]]) -> None:
        for buffering in (0, -1):
            with path.open("rb", buffering=buffering) as ours, real.open("rb", buffering=buffering) as theirs:
                for name, number in operations:
                    assert apply(ours, name, number) == apply(theirs, name, number), (name, number)
                    assert ours.tell() == theirs.tell()

    run()


def test_file_says_what_it_is(kit):
    """A file can be read and sought, not written; it has its path as name, and no descriptor."""
    with (kit / "weights/data.bin").open("rb", buffering=0) as file:
        assert isinstance(file, kitfs.KitFile) and isinstance(file, io.RawIOBase)
        assert (file.name, file.mode, file.size) == ("weights/data.bin", "rb", len(DATA))
        assert file.readable() and file.seekable() and not file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    with (kit / "weights/t").open("rb", buffering=0) as file:
        assert list(file) == [b"1\r\n", b"2\n"]


def test_closed_file_gives_nothing(kit):
    """Whatever is asked of a closed file is a ValueError, as with any file."""
    file = (kit / "weights/data.bin").open("rb", buffering=0)
    file.close()
    calls = [file.read, file.tell, file.readall, file.readable, file.seekable]
    for call in [*calls, lambda: file.seek(0), lambda: file.readinto(bytearray(1)), lambda: file.read_range(0, 1)]:
        with pytest.raises(ValueError, match="closed file"):
            call()


def test_range_beyond_the_file_is_refused(kit):
    """A range that is not within the file is a ValueError and not a shorter one."""
    path = kit / "weights/data.bin"
    for start, stop in [(-1, 1), (2, 1), (0, len(DATA) + 1)]:
        with pytest.raises(ValueError, match="of a file of 384000 bytes"):
            path.read_range(start, stop)


def test_file_of_many_steps(import_kits, make_layout):
    """A file of more bytes than are asked for at once is read whole: as bytes, into a buffer, as a range."""
    data = numpy.random.default_rng(1).bytes(2 * STEP_SIZE + 5)
    home = import_kits(make_layout("large", "none", {"x": data}), "--copy", "--as", "large")
    with kitfs.open("large:1", home=home) as kit, (kit / "weights/x").open("rb") as file:
        assert (kit / "weights/x").read_bytes() == data
        buffer = bytearray(len(data))
        assert file.readinto(buffer) == len(data) and buffer == data
        assert (kit / "weights/x").read_range(3, len(data) - 1) == data[3:-1]


def test_libraries_read_from_it(kit):
    """safetensors, numpy and json load from a file of a ModelKit without knowing what it is."""
    assert load((kit / "weights/m.safetensors").read_bytes())["a"][-1] == 99_999
    with (kit / "weights/n.npy").open("rb") as file:
        assert numpy.load(file)[99, 499] == 49_999
    with (kit / "weights/m.safetensors").open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        start, stop = header["b"]["data_offsets"]
        b = numpy.frombuffer(file.read_range(8 + length + start, 8 + length + stop)).reshape(header["b"]["shape"])
    assert numpy.array_equal(b, numpy.eye(7))


def test_text_is_utf8_and_its_lines_any(kit):
    """Text is read as builtin open does: line ends are made one unless newline says otherwise."""
    path = kit / "weights/t"
    assert path.read_text() == "1\n2\n"
    with path.open(newline="") as file:
        assert file.readlines() == ["1\r\n", "2\n"]
    with path.open("r", encoding="utf-16-le") as file, pytest.raises(UnicodeDecodeError):
        file.read()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_rotten_byte_is_an_error_and_not_a_byte(store_home, make_layout, compression):
    """A byte that has changed in the store is an integrity error for who reads it; what lies elsewhere is read."""
    data = numpy.random.default_rng(2).bytes(4 << 20)
    layout = make_layout("rot", compression, {"a": data[: 1 << 20], "b": data})
    assert run(["import", str(layout), "--as", "rot", "--home", str(store_home), "-q"]) == 0  # linked: not split
    files = [path for path in (store_home / "blobs").rglob("*") if path.is_file() and path.stat().st_size > 4 << 20]
    (blob,) = files
    with kitfs.open("rot:1", home=store_home) as kit:
        blob.chmod(0o644)
        with blob.open("r+b") as file:
            file.seek(-(1 << 20), io.SEEK_END)
            wrong = bytes(255 - byte for byte in file.read(8))
            file.seek(-(1 << 20), io.SEEK_END)
            file.write(wrong)
        assert (kit / "weights/a").read_bytes() == data[: 1 << 20]
        with pytest.raises(IntegrityError):
            (kit / "weights/b").read_bytes()
        with (kit / "weights/b").open("rb") as file:
            assert file.read(1 << 20) == data[: 1 << 20]
