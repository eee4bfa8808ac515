"""A bit flipped anywhere in the index: right answers, a named error, or the death of that process, and nothing else.

Every flip is looked at by a process of its own, since LMDB checks little and a damaged page can end a process. With
KITFS_CAMPAIGN=1 there are 3000 flips in place of some hundred, and the counts are printed (``-s``).
"""

import faulthandler
import os
import random
import shutil
import signal
from collections import Counter

import pytest

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer.reader import LayerReader
from kitfs.modelkit.rebuild import rebuild_index
from kitfs.modelkit.sessions import inode_need, prepare_session
from kitfs.oci.reference import parse_reference
from kitfs.store import schema
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.sessions import SessionOptions
from kitfs.store.store import Store

CAMPAIGN = os.environ.get("KITFS_CAMPAIGN", "") not in ("", "0")
FLIPS = 3000 if CAMPAIGN else 100
REBUILDS = 300 if CAMPAIGN else 8
CHILD_TIMEOUT_S = 120

VERDICTS = ("right", "named", "wrong-bytes", "wrong-tags", "swept", "unnamed", "rebuilt", "not-rebuilt")
GOOD = {"right", "named", "rebuilt", "SIGBUS", "SIGSEGV", "SIGABRT"}
OF_TAGS = {"disagreeing-counts", "corrupt-record", "tag-without-manifest", "lost-tag", "corrupt-tags-log"}


def kit(build, tmp_path, number, layers, make_layout, make_layer, bring):
    folder = make_layout(tmp_path / f"layout{number}", "1", [make_layer(suffix, files) for suffix, files in layers])
    bring(build, folder, repository=f"localhost/kit{number}")


@pytest.fixture
def aged(tmp_path, make_layout, make_layer, bring, read_all):
    """A small store that has seen changes, so that its index has pages of before: its home and the members' digests."""
    home = tmp_path / "home"
    generator = random.Random(11)
    with Store.open(home) as store:
        for number in range(6):
            files = {f"model/{name}": generator.randbytes(200_000) for name in range(3)}
            layers = [(suffix, files | {f"own{number}": b"%d" % number}) for suffix in ("", "+gzip", "+zstd")]
            kit(store, tmp_path, number, layers[number % 3 :] if number % 2 else layers, make_layout, make_layer, bring)
        manifests = [store.get_tag(f"localhost/kit{number}", "1").manifest for number in range(6)]
        for number in range(12):
            with store.lease("move") as lease:
                change = store.change(lease)
                change.set_tag("localhost/moving", "latest", manifests[number % 6])
                if number == 8:
                    change.remove_tag("localhost/kit5", "1")
                change.commit()
        store.inode_base(b"tree", 1 << 22)
        gc(store)
        members = read_all(store)
        gc(store)
    return home, members


def read_tags(store):
    return [(repository, tag, record.manifest) for repository, tag, record in store.iter_tags()]


def find_wrong_read(store, members):
    """Whether any member is read wrong; and whether all were read."""
    all_read = True
    for layer in dict.fromkeys(layer for layer, _ in members):
        try:
            with LayerReader(store, layer) as reader:
                for (owner, number), digest in members.items():
                    if owner == layer:
                        size = reader.toc[number].size
                        if Digest.of(reader.open_member(number).read(0, size)) != digest:
                            return True, False
        except (KitfsError, IndexError):  # an empty table of contents would be another's
            all_read = False
    return False, all_read


def look(home, tags, members, files):
    """What one process makes of the damaged store."""
    named = False
    found = None
    with Store.open(home) as store:
        try:
            found = read_tags(store)
        except KitfsError:
            named = True
        is_wrong, all_read = find_wrong_read(store, members)
        if is_wrong:
            return "wrong-bytes"
        noticed = named
        for dry_run in (True, False):
            try:
                report = gc(store, dry_run=dry_run)
            except KitfsError:
                noticed = True
            else:
                if {victim.name for victim in report.victims if victim.kind != "member"} & files.keys():
                    return "swept"
        if not all(path.exists() for path in files.values()):
            return "swept"
        try:
            damages = {finding.damage for finding in check(store).problems}
        except KitfsError:
            noticed, damages = True, set()
        if found is not None and found != tags and not noticed and not damages & OF_TAGS:
            return "wrong-tags"
    return "right" if all_read and not named and not noticed and not damages else "named"


def in_child(judge):
    """The verdict of a process of its own, or the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_TIMEOUT_S)
        faulthandler.disable()  # a death is an answer here
        try:
            verdict = judge()
        except KitfsError:
            verdict = "named"
        except BaseException as error:  # noqa: BLE001  # the verdict is what is asked for
            print(repr(error)[:300], flush=True)
            verdict = "unnamed"
        os._exit(VERDICTS.index(verdict))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return VERDICTS[code] if 0 <= code < len(VERDICTS) else signal.Signals(-code).name


def choose_bits(data, count):
    """Bits spread over the whole file, most of them in bytes that are used."""
    generator = random.Random(20240321)
    used = [at for at in range(len(data)) if any(data[max(at - 4, 0) : at + 5])]
    bits = [used[len(used) * number // count] * 8 + generator.randrange(8) for number in range(count * 9 // 10)]
    bits += [generator.randrange(len(data) * 8) for _ in range(count - len(bits))]
    generator.shuffle(bits)
    return bits


class Flipper:
    """Damages the index of a store and puts everything back."""

    def __init__(self, home):
        self.home = home
        self.path = home / "index/data.mdb"
        self.original = self.path.read_bytes()
        self.backup = home.with_name("backup")
        shutil.copytree(home, self.backup)

    def flip(self, bit):
        damaged = bytearray(self.original)
        damaged[bit // 8] ^= 1 << bit % 8
        self.path.write_bytes(damaged)

    def restore(self):
        self.path.unlink()  # a new inode: nothing of the old one is in any page cache of LMDB's
        self.path.write_bytes(self.original)
        shutil.copyfile(self.backup / "tags.log", self.home / "tags.log")
        for path in (self.home / "quarantine").glob("*"):
            path.unlink()
        for kind in ("blobs", "members"):
            for source in (self.backup / kind).rglob("*"):
                target = self.home / source.relative_to(self.backup)
                if not target.exists():
                    shutil.copy2(source, target)


def test_flipped_bit_of_the_index_is_no_wrong_answer(aged):
    """Never a wrong byte, never a wrong tag that the counts let pass, never a blob swept that a tag led to."""
    home, members = aged
    with Store.open(home) as store:
        tags = read_tags(store)
        assert check(store, read_data=True).exit_code == 0
        files = {str(digest): store.layout.blob_in_form(digest, record.form) for digest, record in store.iter_blobs()}
    flipper = Flipper(home)
    counts = Counter()
    wrong = {}
    for bit in choose_bits(flipper.original, FLIPS):
        flipper.flip(bit)
        verdict = in_child(lambda: look(home, tags, members, files))
        counts[verdict] += 1
        if verdict not in GOOD:
            wrong[bit] = verdict
        flipper.restore()
    print(len(flipper.original), dict(counts))
    assert not wrong
    assert counts["named"] > FLIPS // 10


def test_rebuild_after_a_flipped_bit_gives_the_same_store(aged, dump, silent):
    """Whatever bit is flipped, the index made anew says the same; numbers that no session has may be lost with it."""
    home, _ = aged
    with Store.open(home) as store:
        options = {"uid": 0, "gid": 0, "options": SessionOptions()}
        session = prepare_session(store, parse_reference("kit0:1"), mountpoint=home / "mnt", **options)
        session.close()
        expected = dump(store)
    wanted = schema.encode_text_key(inode_need(session.record)[0])
    flipper = Flipper(home)
    counts = Counter()

    def judge():
        rebuild_index(home, silent)
        with Store.open(home) as store:
            found = dump(store)
            inodes = found.pop("inodes")
            same = found == {part: value for part, value in expected.items() if part != "inodes"}
            kept = wanted in inodes and inodes.items() <= expected["inodes"].items()
            return "rebuilt" if same and kept and not check(store).problems else "not-rebuilt"

    for bit in choose_bits(flipper.original, REBUILDS):
        flipper.flip(bit)
        verdict = in_child(judge)
        counts[verdict] += 1
        assert verdict == "rebuilt", bit
        flipper.restore()
    print(dict(counts))
