"""tags.log is compacted by GC when it has grown far beyond its tags, and no crash loses a tag."""

import shutil

import pytest

from kitfs.store import schema, tags, tags_log
from kitfs.store.fsck import check
from kitfs.store.gc import gc
from kitfs.store.records import LogPosition
from kitfs.store.repair import repair
from kitfs.store.store import Store
from kitfs.store.tags_log import LogLine, LogSet


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    """A log is long from 50 lines on."""
    monkeypatch.setattr(tags, "COMPACT_LINES", 50)


@pytest.fixture
def many_moves(store, build):
    """A store with three tags, one of them moved often, one set and removed often."""
    kits = [build.kit(f"kit{number}", tags=[("localhost/myllm", str(number))]) for number in range(2)]
    for number in range(60):
        with store.lease("move") as lease:
            change = store.change(lease)
            change.set_tag("localhost/moving", "latest", kits[number % 2], "kit")
            if number % 2:
                change.remove_tag("localhost/gone", "1")
            else:
                change.set_tag("localhost/gone", "1", kits[0])
            change.commit()
    return store


def all_tags(store):
    return list(store.iter_tags())


def line_count(store):
    return store.layout.tags_log.read_bytes().count(b"\n")


def test_long_log_becomes_one_line(many_moves):
    """GC leaves one line that says the same, and the log goes on from there."""
    before = all_tags(many_moves)
    assert line_count(many_moves) == 62
    gc(many_moves, dry_run=True)
    assert line_count(many_moves) == 62
    gc(many_moves)
    assert line_count(many_moves) == 1
    assert all_tags(many_moves) == before
    assert check(many_moves).exit_code == 0
    lines, _ = tags_log.read_lines(many_moves.layout.tags_log, 0)
    logged = tags_log.replay_lines(lines)
    assert {name: (tag.set.manifest, tag.set.origin, tag.at_s) for name, tag in logged.items()} == {
        (repository, tag): (str(record.manifest), record.origin, record.set_s) for repository, tag, record in before
    }
    with many_moves.lease("more") as lease:
        change = many_moves.change(lease)
        change.remove_tag("localhost/moving", "latest")
        change.commit()
    assert line_count(many_moves) == 2
    gc(many_moves)
    assert line_count(many_moves) == 2
    assert check(many_moves).exit_code == 0


def test_short_log_is_left_alone(store, build):
    """A log of few lines stays as it is."""
    build.kit()
    before = store.layout.tags_log.read_bytes()
    gc(store)
    assert store.layout.tags_log.read_bytes() == before


def test_log_of_many_tags_is_left_alone(store, build):
    """Many lines for many tags are no reason."""
    build.kit(tags=[("localhost/myllm", str(number)) for number in range(20)])
    manifest = store.get_tag("localhost/myllm", "0").manifest
    for number in range(80):
        with store.lease("tag") as lease:
            change = store.change(lease)
            change.set_tag("localhost/more", str(number), manifest)
            change.commit()
    gc(store)
    assert line_count(store) == 81


@pytest.fixture
def crashed(many_moves):
    """A store whose GC died after the log was replaced and before the index had its new size; its tags before."""
    before = all_tags(many_moves)
    with many_moves.index.read() as txn:
        position = tags.log_position(txn)
    gc(many_moves)
    with many_moves.index.write() as txn:
        txn.put(schema.COUNTS, schema.LOG_POSITION, LogPosition(position))
    return many_moves, before


def test_crash_before_the_index_has_the_new_size(crashed):
    """The next opening sees which size the line stands for: nothing is lost, nothing is to be repaired."""
    store, before = crashed
    assert check(store).exit_code == 0
    with Store.open(store.home) as again:
        assert all_tags(again) == before
        with again.index.read() as txn:
            assert not tags.is_behind(txn, again.layout)
        assert check(again).exit_code == 0


def test_crash_and_then_a_change(crashed, build):
    """A process that had the store open goes on after another one's crash, and its line comes behind the one."""
    store, before = crashed
    build.kit("after", tags=[("localhost/after", "1")])
    assert line_count(store) == 2
    assert [item for item in all_tags(store) if item[0] != "localhost/after"] == before
    assert check(store).exit_code == 0
    gc(store)
    assert len(all_tags(store)) == len(before) + 1


def test_crash_and_then_a_repair(crashed):
    """A repair of that state changes no tag."""
    store, before = crashed
    repair(store)
    assert all_tags(store) == before
    assert check(store).exit_code == 0


def test_log_that_was_cut_is_not_taken_for_a_compacted_one(damaged, build_damaged):
    """Only the very size that a line stands for counts; a shorter log of other lines is damage."""
    build_damaged.kit()
    build_damaged.kit("other", tags=[("localhost/other", "1")])
    log = damaged.layout.tags_log
    entry = LogSet("localhost/myllm", "1", str(damaged.get_tag("localhost/myllm", "1").manifest), "here")
    log.write_bytes(tags_log.encode_line(0, LogLine(1, [entry], replaces=7)))
    assert "corrupt-tags-log" in {finding.damage for finding in check(damaged).findings}


def test_dry_copy_of_a_compacted_store_is_sound(many_moves, tmp_path):
    """A store that was compacted and copied elsewhere opens and agrees."""
    gc(many_moves)
    before = all_tags(many_moves)
    home = tmp_path / "copy"
    shutil.copytree(many_moves.home, home)
    with Store.open(home) as copy:
        assert all_tags(copy) == before
        assert check(copy).exit_code == 0
