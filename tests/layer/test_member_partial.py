"""Members of lazy layers become files behind their readers, and nothing that is in a partial is believed unchecked."""

import os
import random
import threading
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.layer.finisher import shared_finisher
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.layer.span_pool import shared_pool
from kitfs.oci.mediatype import Compression
from kitfs.store.gc import gc
from kitfs.store.layout import Layout
from kitfs.store.partials import Partial, boot_id, drop_other_boots, iter_partials, map_of
from kitfs.store.store import Store

GZIP = Compression.GZIP
MIB = 1 << 20
SIX_BITS = bytes(value & 0x3F for value in range(256))


@pytest.fixture
def shards() -> dict[str, bytes]:
    """Two members of several spans, and a small one between them."""
    rng = random.Random(7)
    sizes = {"one": 3 * MIB + 12_345, "small": 5_000, "two": 2 * MIB + 1}
    return {name: rng.randbytes(size).translate(SIX_BITS) for name, size in sizes.items()}


@pytest.fixture
def index(layers, tar_of, shards):
    layers.spacing = 200_000
    return layers.add(tar_of(shards), GZIP)


def members(store: Store) -> set[str]:
    return {path.name for path in store.layout.content("members").glob("*/*")}


def read(member, piece: int = 128 << 10) -> bytes:
    return b"".join(bytes(member.read(at, min(at + piece, member.size))) for at in range(0, member.size, piece))


def settle(reader: LayerReader) -> None:
    """Wait until what was decoded is written, and what was to be finished is."""
    shared_pool().drop(reader._lazy)
    assert shared_finisher().wait_idle(60)


def test_a_member_that_was_read_becomes_a_file(layers, index, shards):
    """After its readers are idle it is under its digest, verified, recorded, 0444, and read from there."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        assert member.state == "lazy"
        assert read(member) == shards["one"]
        settle(reader)
        assert member.state == "native"
        before = shared_pool().decoded_count
        assert bytes(member.read(5, member.size)) == shards["one"][5:]
        assert reader.open_member(0).state == "native"
        assert shared_pool().decoded_count == before
        assert members(layers.store) == {Digest.of(shards["one"]).hex}
        path = layers.store.layout.member(Digest.of(shards["one"]))
        assert path.read_bytes() == shards["one"]
        assert path.stat().st_mode & 0o7777 == 0o444
        assert list(iter_partials(layers.store.layout)) == []
        fd, is_trusted = layers.store.open_member(Digest.of(shards["one"]))
        os.close(fd)
        assert is_trusted


def test_little_that_was_read_stays_partial(layers, index, shards):
    """Two spans of a member are kept for others and make no member; a small member makes no file at all."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        member.read(MIB, MIB + 10)
        assert bytes(reader.open_member(1).read(0, 5_000)) == shards["small"]
        settle(reader)
        assert member.state == "partial"
        assert members(layers.store) == set()
        assert [path.name for path in iter_partials(layers.store.layout)] == [f"{index.digest.hex}.0"]


def test_what_one_process_decoded_another_reads(layers, index, shards):
    """A second reader with an empty cache finds all spans that lie within the member, and checks them."""
    with LayerReader(layers.store, index.digest) as one, LayerReader(layers.store, index.digest) as two:
        shared_finisher().close()
        assert read(one.open_member(0)) == shards["one"]
        shared_pool().drop(one._lazy)
        shared_pool().forget(one._lazy)
        before = shared_pool().decoded_count
        assert before > 10
        assert read(two.open_member(0)) == shards["one"]
        shared_pool().drop(two._lazy)
        assert shared_pool().decoded_count - before <= 2  # those at its ends, which others have bytes of


@pytest.mark.parametrize("policy", [Materialise.NEVER, Materialise.AUTO, Materialise.ALWAYS])
def test_the_policy_decides(layers, index, shards, policy):
    """``never`` writes nothing, ``auto`` what is read, ``always`` what is opened, small members too."""
    with LayerReader(layers.store, index.digest, materialise=policy) as reader:
        opened = [reader.open_member(number) for number in range(3)]
        assert read(opened[2]) == shards["two"]
        settle(reader)
        found = members(layers.store)
        expected = {"never": [], "auto": ["two"], "always": ["one", "small", "two"]}[policy]
        assert found == {Digest.of(shards[name]).hex for name in expected}


def test_rot_in_a_partial_is_noticed(layers, index, shards):
    """A bit of a partial that changed is never served, and keeps the file from becoming a member as it is."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        member.read(0, member.size // 2)
        shared_pool().drop(reader._lazy)
        (path,) = iter_partials(layers.store.layout)
        rng = random.Random(1)
        with path.open("r+b") as file:
            for at in rng.sample(range(member.size // 2 - 400_000), 5):
                file.seek(at)
                (old,) = file.read(1)
                file.seek(at)
                file.write(bytes((old ^ 1 << rng.randrange(8),)))
        shared_pool().forget(reader._lazy)
        assert read(member) == shards["one"]
        settle(reader)
        assert read(member) == shards["one"]
        found = members(layers.store)
        assert found <= {Digest.of(shards["one"]).hex}
        assert all((layers.store.layout.member(Digest(name))).read_bytes() == shards["one"] for name in found)


def test_a_whole_partial_with_other_bytes_is_dropped(layers, index, shards, caplog):
    """Hashing it before it is placed finds what nobody read back; the member is read from the layer."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        partial = reader._lazy.partial(0)
        for span in range(partial._first, partial._last + 1):
            partial.keep(span, reader._lazy.get(span))
        with partial._changed:  # a decoder that has been given a span may just be opening it
            assert partial._changed.wait_for(lambda: partial.is_begun and partial._users == 0, 30)
        (path,) = iter_partials(layers.store.layout)
        with path.open("r+b") as file:
            file.write(bytes((shards["one"][0] ^ 1,)))
        partial.run()
        assert not partial.is_native
        assert "made anew" in caplog.text
        assert list(iter_partials(layers.store.layout)) == []
        assert members(layers.store) == set()
        assert read(member) == shards["one"]


def test_two_that_finish_one_member_leave_one_file(layers, index, shards):
    """Two readers with partials of their own descriptors finish at once: one places it, both read right."""
    with LayerReader(layers.store, index.digest) as one, LayerReader(layers.store, index.digest) as two:
        opened = [one.open_member(0), two.open_member(0)]
        start = threading.Barrier(2)

        def finish(member) -> None:
            start.wait(30)
            member.materialise()

        threads = [threading.Thread(target=finish, args=(member,)) for member in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert members(layers.store) == {Digest.of(shards["one"]).hex}
        assert [read(member) for member in opened] == [shards["one"]] * 2
        assert list(iter_partials(layers.store.layout)) == []


def test_another_boots_partials_are_dropped(layers, index, shards):
    """After another boot the map may say more than the disk has: nothing of it is read, and it goes."""
    with LayerReader(layers.store, index.digest) as reader:
        reader.open_member(0).read(0, MIB)
        shared_pool().drop(reader._lazy)
    folder = layers.store.layout.partial / boot_id()
    old = folder.rename(folder.with_name("00000000-0000-0000-0000-000000000000"))
    (path,) = old.glob("*.0")
    path.write_bytes(bytes(path.stat().st_size))
    shared_pool().forget(reader._lazy)
    with LayerReader(layers.store, index.digest) as reader:
        assert read(reader.open_member(0)) == shards["one"]
        settle(reader)
        assert not old.exists()
    drop_other_boots(layers.store.layout)
    assert folder.exists()


def test_members_read_one_after_another_all_become_files(layers, tar_of, shards):
    """The span that a member shares with the one read before it is cached, not decoded again, and yet gets there."""
    layers.spacing = 700_000
    index = layers.add(tar_of(shards), GZIP)
    with LayerReader(layers.store, index.digest) as reader:
        for number, name in ((0, "one"), (1, "small"), (2, "two")):
            assert read(reader.open_member(number)) == shards[name]
        settle(reader)
    assert members(layers.store) == {Digest.of(shards[name]).hex for name in ("one", "two")}


def test_a_byte_of_the_map_that_is_neither_0_nor_1_is_a_missing_span(layers):
    """A flipped bit of the map costs a decoding, not the file."""
    partial = Partial(layers.store.layout, "x.0", 1000, 3)
    map_of(partial.path).write_bytes(b"\1\x81\1")
    assert partial.find_missing() == [1]
    partial.write(1, memoryview(b"x"), 500)
    assert partial.is_whole
    partial.discard()


def test_a_partial_that_was_killed_as_it_became_a_member_is_taken_up(layers):
    """It is read only already, which stops everybody but root; the next worker of the same user can open it."""
    layout = layers.store.layout
    partial = Partial(layout, "x.0", 1000, 3)
    partial.path.chmod(0o444)
    partial.close()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            drop_privilege(layers.store.home)
            Partial(Layout(Path()), "x.0", 1000, 3).write(0, memoryview(b"x" * 300), 0)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert partial.path.read_bytes()[:300] == b"x" * 300


def drop_privilege(home) -> None:
    """Be an ordinary user who owns the partials; the working directory is the store."""
    os.chdir(home)
    if os.geteuid() == 0:
        for path in (home / "partial", *(home / "partial").rglob("*")):
            os.chown(path, 65534, 65534)
        home.chmod(0o711)
        os.setresuid(65534, 65534, 65534)


def test_a_partial_of_another_shape_is_replaced(layers):
    """The files of a kitfs that put other spans into them are not taken over."""
    layout = layers.store.layout
    Partial(layout, "x.0", 1000, 3).close()
    other = Partial(layout, "x.0", 1000, 4)
    assert other.find_missing() == [0, 1, 2, 3]
    assert map_of(other.path).stat().st_size == 4
    other.discard()
    assert not other.path.exists()


def test_a_changed_member_file_is_hashed_again(layers, index, shards):
    """A file whose stamp does not hold is read from its layer until it is hashed; then it is native again."""
    with LayerReader(layers.store, index.digest) as reader:
        reader.open_member(0).materialise()
        path = layers.store.layout.member(Digest.of(shards["one"]))
        os.utime(path)
        member = reader.open_member(0)
        assert member.state == "lazy"
        assert bytes(member.read(0, 100)) == shards["one"][:100]
        settle(reader)
        assert reader.open_member(0).state == "native"


def test_a_wrong_member_file_is_made_anew(layers, index, shards):
    """A member file with other bytes is never served; it is dropped, and made again by the next readers."""
    with LayerReader(layers.store, index.digest) as reader:
        reader.open_member(0).materialise()
        path = layers.store.layout.member(Digest.of(shards["one"]))
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.write(b"wrong")
        member = reader.open_member(0)
        assert read(member) == shards["one"]
        settle(reader)
        shared_pool().forget(reader._lazy)
        member = reader.open_member(0)
        assert read(member) == shards["one"]
        settle(reader)
        assert path.read_bytes() == shards["one"]
        assert member.state == "native"


def test_a_file_cut_while_it_is_open_is_read_from_the_layer(layers, index, shards):
    """What is missing of a native member comes from its spans: right bytes, no short read."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        member.materialise()
        assert member.state == "native"
        path = layers.store.layout.member(Digest.of(shards["one"]))
        path.chmod(0o600)
        os.truncate(path, MIB)
        assert read(member) == shards["one"]


def test_gc_takes_partials_that_nobody_reads(layers, index):
    """One that is read stays, with what its readers have decoded; after they are gone it goes."""
    with LayerReader(layers.store, index.digest) as reader:
        member = reader.open_member(0)
        member.read(0, 10)
        shared_pool().drop(reader._lazy)
        kept = list(iter_partials(layers.store.layout))
        with layers.store.lease("test") as lease:
            lease.hold(index.digest)
            gc(layers.store)
            assert list(iter_partials(layers.store.layout)) == kept
            del member
            reader.close()
            gc(layers.store)
            assert list(iter_partials(layers.store.layout)) == []
