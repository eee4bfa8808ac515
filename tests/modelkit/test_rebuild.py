"""The index made anew from the files says the same as before, and what is corrupt is named and not recorded."""

import os
import shutil
import subprocess
import sys

import pytest

from kitfs.digest import Digest
from kitfs.modelkit.rebuild import rebuild_index
from kitfs.modelkit.sessions import inode_need
from kitfs.store import schema
from kitfs.store.errors import IndexInUse, StoreNotFound
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.outline import MEMBERS_MIN
from kitfs.store.records import InodeRange, MemberRecord
from kitfs.store.store import Store


def destroy(index):
    index.joinpath("data.mdb").write_bytes(os.urandom(3 * 4096))


def zero(index):
    index.joinpath("data.mdb").write_bytes(bytes(index.joinpath("data.mdb").stat().st_size))


def cut(index):
    path = index / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)


WAYS = {
    "whole": lambda index: None,
    "destroyed": destroy,
    "zeroed": zero,
    "cut": cut,
    "empty": lambda index: index.joinpath("data.mdb").write_bytes(b""),
    "missing": lambda index: index.joinpath("data.mdb").unlink(),
    "without-folder": shutil.rmtree,
}


@pytest.mark.parametrize("way", WAYS)
def test_rebuilt_index_says_the_same(many_forms, silent, dump, read_all, way):
    """Whatever became of the index, the one made anew has the same blobs, ModelKits, tags, layers, members, numbers."""
    with Store.open(many_forms) as store:
        bytes_before = read_all(store)  # makes files of what it reads
    with Store.open(many_forms) as store:
        before = dump(store)
        forms = [(form, origin) for _, form, _, origin in before["blobs"].values()]
        assert {("split", "here"), ("split", "layout"), ("linked", "kit")} <= set(forms), set(forms)
    WAYS[way](many_forms / "index")
    report = rebuild_index(many_forms, silent)
    assert report.exit_code == (0 if way == "whole" else 1), report
    with Store.open(many_forms) as store:
        after = dump(store)
        for part, value in before.items():
            assert after[part] == value, part
        assert read_all(store) == bytes_before
        assert check(store, read_data=True).exit_code == 0
        gc(store)
        assert dump(store)["tags"] == before["tags"]
        assert check(store, read_data=True).exit_code == 0


def test_sessions_keep_their_numbers_and_none_is_given_out_again(many_forms, silent):
    """With the index lost, sessions have the numbers that they recorded, and new ones lie beyond all given out."""
    with Store.open(many_forms) as store:
        given = [store.inode_base(b"ended %d" % number, 1 << 22) for number in range(5)]
        recorded = {inode_need(record)[0]: record.inode_first for record, _ in store.iter_sessions()}
    assert len(recorded) == 2
    destroy(many_forms / "index")
    rebuild_index(many_forms, silent)
    with Store.open(many_forms) as store:
        for record, _ in store.iter_sessions():
            assert store.inode_base(*inode_need(record)) == recorded[inode_need(record)[0]]
        assert store.inode_base(b"fresh", 1) > max(given) + (1 << 22)
        assert check(store).exit_code == 0


def test_numbers_of_ended_sessions_survive_where_the_old_index_can_be_read(many_forms, silent):
    """A tree that was mounted once has the same numbers after the index was made anew from one that could be read."""
    with Store.open(many_forms) as store:
        ended = store.inode_base(b"ended", 1 << 22)
        following = store.inode_base(b"last", 7)
    assert rebuild_index(many_forms, silent).exit_code == 0
    with Store.open(many_forms) as store:
        assert store.inode_base(b"ended", 1 << 22) == ended
        assert store.inode_base(b"next", 1) == following + 7
        with store.index.read() as txn:
            assert txn.find(schema.INODE_BASES, schema.encode_text_key(b"last"), InodeRange) is not None


def rot(path):
    """One bit, and the old times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "kind", ["manifest", "config.v1+json", "model.v1.tar", "model.v1.tar+gzip", "model.v1.tar+zstd", "raw"]
)
def test_corrupt_blob_is_named_and_not_recorded(many_forms, silent, kind, bring, shared_fixtures, tmp_path):
    """A blob of any kind with a flipped bit is named, ends with 6, is moved aside, and healed by importing it again."""
    with Store.open(many_forms) as store:
        found = [
            digest
            for digest, record in store.iter_blobs()
            if record.form == "whole" and any(text.endswith(kind) for text in record.media_types)
        ]
        victim = found[0] if found else store.get_tag("localhost/whole", "dot").manifest
        others = {digest for digest, _ in store.iter_blobs()} - {victim}
    rot(many_forms / "blobs/sha256" / victim.hex[:2] / victim.hex)
    report = rebuild_index(many_forms, silent)
    assert report.exit_code == 6
    assert [item.name for item in report.findings if item.damage == "wrong-digest"] == [str(victim)]
    with Store.open(many_forms) as store:
        assert {digest for digest, _ in store.iter_blobs()} == others
        assert check(store, read_data=True).exit_code == 6
        assert [
            path.name.partition(".")[0] for path in store.layout.quarantine.iterdir() if "index" not in path.name
        ] == [victim.hex]
        bring(store, shared_fixtures / "kit-v1.7.0")
        bring(store, shared_fixtures / "modctl/layout", repository="localhost/mp")
        bring(store, tmp_path / "packed")
        assert store.find_blob(victim) is not None
        assert [item for item in check(store, read_data=True).problems if item.name == str(victim)] == []


def test_wrong_member_is_dropped_and_made_anew_when_it_is_read(many_forms, silent, read_all):
    """A member file with other bytes gets no record; the next read makes it from its layer."""
    with Store.open(many_forms) as store, store.index.read() as txn:
        records = txn.iter(schema.MEMBERS, MemberRecord)
        member = Digest.from_raw(next(key for key, record in records if not record.pins))
    rot(many_forms / "members/sha256" / member.hex[:2] / member.hex)
    report = rebuild_index(many_forms, silent)
    assert [item.name for item in report.repaired if item.damage == "wrong-member-digest"] == [str(member)]
    with Store.open(many_forms) as store:
        assert store.find_member(member) is None
        read_all(store)
        assert check(store, read_data=True).exit_code == 0


def test_layer_of_many_members_keeps_its_outline(store_home, silent, dump, bring, make_layout, make_layer, tmp_path):
    """A layer that has an outline beside its table of contents has it again."""
    files = {f"many/{number}": b"" for number in range(MEMBERS_MIN + 1)}
    with Store.open(store_home) as store:
        bring(store, make_layout(tmp_path / "many", "1", [make_layer("", files)]))
        before = dump(store)
        [values] = [record.outline_values for record, *_ in before["layers"].values()]
        assert values
    assert rebuild_index(store_home, silent).exit_code == 0
    with Store.open(store_home) as store:
        assert dump(store) == before
        assert check(store, read_data=True).exit_code == 0


def test_index_that_is_open_elsewhere_is_not_replaced(many_forms, silent):
    """While another process has the store open, and while this one has, a rebuild refuses and changes nothing."""
    before = (many_forms / "index/data.mdb").read_bytes()
    code = (
        "import sys; from pathlib import Path; from kitfs.store.store import Store\n"
        "with Store.open(Path(sys.argv[1])): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, many_forms], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(IndexInUse):
            rebuild_index(many_forms, silent)
        other.communicate(b"")
    with Store.open(many_forms), pytest.raises(IndexInUse):
        rebuild_index(many_forms, silent)
    assert (many_forms / "index/data.mdb").read_bytes() == before
    assert rebuild_index(many_forms, silent).exit_code == 0


def test_store_opened_during_a_rebuild_waits_and_then_sees_the_new_index(many_forms, silent, monkeypatch):
    """A process that opens the store meanwhile is kept waiting, and then reads what the new index says."""
    code = (
        "import sys; from pathlib import Path; from kitfs.store.store import Store\n"
        "print('begun', flush=True)\n"
        "with Store.open(Path(sys.argv[1])) as store: print(len(list(store.iter_tags())), flush=True)"
    )
    others = []

    class Opening:
        """Starts the other process at the first step."""

        def begin(self, name, size):
            if not others:
                others.append(subprocess.Popen([sys.executable, "-c", code, many_forms], stdout=subprocess.PIPE))
                assert others[0].stdout.readline() == b"begun\n"
            return self

        def advance(self, size):
            assert others[0].poll() is None

        def finish(self):
            pass

    with Store.open(many_forms) as store:
        tags = len(list(store.iter_tags()))
    destroy(many_forms / "index")
    rebuild_index(many_forms, Opening())
    assert others[0].communicate(timeout=60)[0] == b"%d\n" % tags
    assert others[0].returncode == 0
    with Store.open(many_forms) as store:
        assert check(store).exit_code == 0


def test_rebuild_that_fails_leaves_the_old_index(many_forms, dump):
    """An error half way leaves the old index in its place and nothing beside it."""
    with Store.open(many_forms) as store:
        before = dump(store)

    class Failing:
        def begin(self, name, size):
            return self

        def advance(self, size):
            pass

        def finish(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild_index(many_forms, Failing())
    assert not (many_forms / "index.new").exists()
    with Store.open(many_forms) as store:
        assert dump(store) == before


def test_damaged_log_and_whole_index(many_forms, silent):
    """With tags.log damaged, the tags are those of the old index when it has them all by its own count."""
    log = many_forms / "tags.log"
    with Store.open(many_forms) as store:
        tags = list(store.iter_tags())
    raw = bytearray(log.read_bytes())
    raw[10] ^= 1
    log.write_bytes(raw)
    report = rebuild_index(many_forms, silent)
    assert [item.damage for item in report.repaired] == ["corrupt-tags-log"]
    with Store.open(many_forms) as store:
        assert list(store.iter_tags()) == tags
        assert check(store, read_data=True).exit_code == 0


def test_log_that_lost_lines_does_not_win_over_the_index(many_forms, silent):
    """A log that is shorter than what the index had of it is not the authority."""
    log = many_forms / "tags.log"
    with Store.open(many_forms) as store:
        tags = list(store.iter_tags())
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-2]))
    assert rebuild_index(many_forms, silent).exit_code == 1
    with Store.open(many_forms) as store:
        assert list(store.iter_tags()) == tags
        assert check(store).exit_code == 0


def test_absent_store_is_not_made(tmp_path, silent):
    """Where there is no store none is made."""
    with pytest.raises(StoreNotFound):
        rebuild_index(tmp_path / "none", silent)
    assert not (tmp_path / "none").exists()
