"""What every store promises its callers."""

import os

import pytest

from kitfs.digest import Digest, DigestMismatch
from kitfs.store.errors import (
    BlobNotFound,
    BlobTooLarge,
    LayerNotIndexed,
    LeaseEnded,
    LimitExceeded,
    ManifestIncomplete,
    ManifestNotFound,
    MemberNotFound,
    SizeMismatch,
    TagNotFound,
)
from kitfs.store.records import LayerRecord, ManifestRecord, TocMember

ABSENT = Digest("0" * 64)
REPOSITORY = "localhost/myllm"


def read_fd(fd):
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def test_committed_blob_is_read_back(subject):
    """Bytes that were committed are read back under their digest, by descriptor and whole."""
    with subject.store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        assert digest == Digest.of(b"hello")
        assert subject.store.read_blob(digest) == b"hello"
        assert read_fd(subject.store.open_blob(digest)) == b"hello"


def test_blob_is_recorded_only_by_a_committed_change(subject):
    """A placed blob has no record before a change commits, and then has its size and media types."""
    store = subject.store
    with store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        change = store.change(lease)
        change.add_blob(digest, 5, media_type="a")
        assert store.find_blob(digest) is None
        change.commit()
        again = store.change(lease)
        again.add_blob(digest, 5, media_type="b")
        again.commit()
        assert store.get_blob(digest).size == 5
        assert store.get_blob(digest).media_types == ["a", "b"]


def test_absent_things_raise_or_are_none(subject):
    """What is not there is None for find and a named error for get, open and read."""
    store = subject.store
    assert store.find_blob(ABSENT) is None
    assert store.find_manifest(ABSENT) is None
    assert store.find_layer(ABSENT) is None
    assert store.find_member(ABSENT) is None
    assert store.find_tag(REPOSITORY, "1") is None
    for call, error in (
        (lambda: store.get_blob(ABSENT), BlobNotFound),
        (lambda: store.open_blob(ABSENT), BlobNotFound),
        (lambda: store.read_blob(ABSENT), BlobNotFound),
        (lambda: store.get_manifest(ABSENT), ManifestNotFound),
        (lambda: store.get_toc(ABSENT), LayerNotIndexed),
        (lambda: store.open_toc(ABSENT), LayerNotIndexed),
        (lambda: store.open_outline(ABSENT), LayerNotIndexed),
        (lambda: store.span_checksums(ABSENT), LayerNotIndexed),
        (lambda: store.open_member(ABSENT), MemberNotFound),
        (lambda: store.get_tag(REPOSITORY, "1"), TagNotFound),
    ):
        with pytest.raises(error):
            call()


def test_commit_with_wrong_digest_leaves_no_blob(subject):
    """Bytes that are not what was announced are refused, and nothing of them stays."""
    with subject.store.lease("test") as lease:
        with subject.store.ingest(lease) as ingest:
            ingest.write(b"hello")
            with pytest.raises(DigestMismatch):
                ingest.commit_blob(ABSENT)
        with pytest.raises(BlobNotFound):
            subject.store.open_blob(Digest.of(b"hello"))


def test_commit_with_wrong_size_leaves_no_blob(subject):
    """Bytes of another size than announced are refused, and nothing of them stays."""
    with subject.store.lease("test") as lease:
        with subject.store.ingest(lease) as ingest:
            ingest.write(b"hello")
            with pytest.raises(SizeMismatch):
                ingest.commit_blob(Digest.of(b"hello"), 6)
        with pytest.raises(BlobNotFound):
            subject.store.open_blob(Digest.of(b"hello"))


def test_read_blob_refuses_more_than_the_limit(subject):
    """A blob larger than the caller's limit is not read."""
    with subject.store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        with pytest.raises(BlobTooLarge):
            subject.store.read_blob(digest, limit=4)


def test_kit_and_tag_appear_together(subject):
    """Nothing of a change is seen before its commit; after it manifest, layers and tag are all there."""
    store = subject.store
    with store.lease("test") as lease:
        change = store.change(lease)
        manifest = subject.add_kit(lease, change, "kit", [b"one", b"two"])
        change.set_tag(REPOSITORY, "1", manifest, "kit")
        assert list(store.iter_tags()) == []
        assert list(store.iter_manifests()) == []
        change.commit()
    assert store.get_tag(REPOSITORY, "1").manifest == manifest
    assert store.get_tag(REPOSITORY, "1").origin == "kit"
    record = store.get_manifest(manifest)
    assert [store.read_blob(layer) for layer in record.layers] == [b"one", b"two"]
    assert [member.digest for member in store.get_toc(record.layers[1])] == [Digest.of(b"two").raw]
    assert store.span_checksums(record.layers[1]) == b"c" * 16


def test_change_without_commit_leaves_nothing_recorded(subject):
    """A change that is not committed is forgotten."""
    store = subject.store
    with store.lease("test") as lease:
        change = store.change(lease)
        manifest = subject.add_kit(lease, change, "kit")
        change.set_tag(REPOSITORY, "1", manifest)
    assert list(store.iter_manifests()) == []
    assert list(store.iter_blobs()) == []


def test_tag_moves_and_goes(subject):
    """A tag names one manifest; setting it again moves it, removing it twice is an error."""
    store = subject.store
    with store.lease("test") as lease:
        change = store.change(lease)
        first = subject.add_kit(lease, change, "first")
        second = subject.add_kit(lease, change, "second")
        change.set_tag(REPOSITORY, "1", first)
        change.commit()
        move = store.change(lease)
        move.set_tag(REPOSITORY, "1", second)
        move.commit()
        assert store.get_tag(REPOSITORY, "1").manifest == second
        for _ in range(2):
            remove = store.change(lease)
            remove.remove_tag(REPOSITORY, "1")
            if store.find_tag(REPOSITORY, "1"):
                remove.commit()
            else:
                with pytest.raises(TagNotFound):
                    remove.commit()
    assert list(store.iter_tags()) == []


def test_tags_are_listed_by_repository(subject):
    """Listing one repository gives its tags only, however long its name is, and in order."""
    store = subject.store
    long = "registry.example.com/" + "/".join(["component"] * 30)
    with store.lease("test") as lease:
        change = store.change(lease)
        manifest = subject.add_kit(lease, change, "kit")
        for repository in ("localhost/a", "localhost/a-b", "localhost/aa", long):
            for tag in ("2", "1"):
                change.set_tag(repository, tag, manifest)
        change.commit()
    assert len(list(store.iter_tags())) == 8
    assert [tag for _, tag, _ in store.iter_tags("localhost/a")] == ["1", "2"]
    assert [(name, tag) for name, tag, _ in store.iter_tags(long)] == [(long, "1"), (long, "2")]


def test_manifest_needs_its_blobs(subject):
    """A manifest whose layer is not recorded is refused, and so is a tag on what is no manifest."""
    store = subject.store
    with store.lease("test") as lease:
        config = subject.put(lease, b"config")
        change = store.change(lease)
        change.add_blob(config, 6)
        change.add_manifest(config, ManifestRecord(config, [ABSENT]))
        with pytest.raises(ManifestIncomplete):
            change.commit()
        change = store.change(lease)
        change.set_tag(REPOSITORY, "1", config)
        with pytest.raises(ManifestNotFound):
            change.commit()
    assert list(store.iter_tags()) == []
    assert list(store.iter_blobs()) == []


def test_large_table_of_contents_keeps_its_order(subject):
    """A layer of 5000 members, 600 KiB of checksums and three values of checkpoints reads back as it was recorded."""
    store = subject.store
    toc = [TocMember(b"%05d" % number, 0, 0o644, 1, number * 512, b"d" * 32) for number in range(5000)]
    checksums = os.urandom(600 * 1024)
    checkpoints = [os.urandom(size) for size in (256 * 1024, 1, 100_000)]
    with store.lease("test") as lease:
        digest = subject.put(lease, b"layer")
        change = store.change(lease)
        change.add_blob(digest, 5)
        change.add_layer(digest, LayerRecord(digest, "tar", "none", 0, 5, 5), toc, checksums, checkpoints)
        change.commit()
    assert store.get_toc(digest) == toc
    opened = store.open_toc(digest)
    assert len(opened) == 5000 and list(opened) == toc
    assert [opened[place] for place in (0, 4999, 1024, 1023, -1)] == [toc[place] for place in (0, 4999, 1024, 1023, -1)]
    with pytest.raises(IndexError):
        opened[5000]
    outline = store.open_outline(digest)
    assert (outline.count, outline.find(0, b"04999").member, outline.find(0, b"5000")) == (5001, 4999, None)
    assert store.span_checksums(digest) == checksums
    assert [store.get_checkpoint_value(digest, number) for number in range(3)] == checkpoints
    assert store.find_layer(digest).checkpoint_values == 3
    assert store.find_layer(digest).member_count == 5000


def test_layer_recorded_again_replaces_the_old_table(subject):
    """Recording a layer again leaves none of the batches it had before."""
    store = subject.store
    with store.lease("test") as lease:
        digest = subject.put(lease, b"layer")
        for count in (3000, 2):
            change = store.change(lease)
            change.add_blob(digest, 5)
            toc = [TocMember(b"%d" % number, 0, 0o644, 1, 0, None) for number in range(count)]
            change.add_layer(digest, LayerRecord(digest, "tar", "none", 0, 5, 5), toc, bytes(16 * count))
            change.commit()
    assert len(store.get_toc(digest)) == len(store.open_toc(digest)) == 2
    assert store.open_outline(digest).count == 3
    assert len(store.span_checksums(digest)) == 32


def test_member_is_opened_by_digest(subject):
    """A recorded member is opened and trusted; an unrecorded one is not found."""
    store = subject.store
    with store.lease("test") as lease:
        digest = subject.put(lease, b"bytes", member=True)
        with pytest.raises(MemberNotFound):
            store.open_member(digest)
        change = store.change(lease)
        change.add_member(digest, 5)
        change.commit()
        fd, trusted = store.open_member(digest)
        assert (read_fd(fd), trusted) == (b"bytes", True)


def test_gc_keeps_what_a_tag_leads_to(subject):
    """Config, layers, their members and the parents of a tagged manifest stay; the rest goes."""
    store = subject.store
    with store.lease("test") as lease:
        change = store.change(lease)
        parent = subject.add_kit(lease, change, "parent", [b"base"])
        child = subject.add_kit(lease, change, "child", [b"tuned"], parents=[parent])
        loose = subject.add_kit(lease, change, "loose", [b"loose"])
        for data in (b"tuned", b"orphan"):
            change.add_member(subject.put(lease, data, member=True), len(data))
        change.set_tag(REPOSITORY, "1", child)
        change.commit()
    subject.gc()
    assert {digest for digest, _ in store.iter_manifests()} == {parent, child}
    assert store.read_blob(Digest.of(b"base")) == b"base"
    assert store.find_blob(loose) is None
    assert store.find_layer(Digest.of(b"loose")) is None
    assert store.find_member(Digest.of(b"tuned")) is not None
    assert store.find_member(Digest.of(b"orphan")) is None
    with pytest.raises(BlobNotFound):
        store.open_blob(Digest.of(b"loose"))


def test_gc_keeps_the_image_indexes_of_a_manifest(subject):
    """A blob that a manifest's record names as an image index must be there, and stays and goes with the manifest."""
    store = subject.store
    with store.lease("test") as lease:
        change = store.change(lease)
        kit = subject.add_kit(lease, change, "kit")
        change.set_tag(REPOSITORY, "1", kit)
        change.commit()
        old, index = store.get_manifest(kit), subject.put(lease, b"image index")
        change.add_manifest(kit, ManifestRecord(old.config, old.layers, [], [index]))
        with pytest.raises(ManifestIncomplete):
            change.commit()
        change.add_blob(index, 11)
        change.add_manifest(kit, ManifestRecord(old.config, old.layers, [], [index]))
        change.commit()
    subject.gc()
    assert store.read_blob(store.get_manifest(kit).indexes[0]) == b"image index"
    with store.lease("test") as lease:
        change = store.change(lease)
        change.remove_tag(REPOSITORY, "1")
        change.commit()
    subject.gc()
    assert store.find_blob(index) is None


def test_gc_keeps_what_a_lease_holds(subject):
    """A held digest stays until its lease ends, with what it leads to."""
    store = subject.store
    with store.lease("writer") as writer:
        change = store.change(writer)
        manifest = subject.add_kit(writer, change, "kit", [b"layer"])
        change.commit()
        reader = store.lease("reader")
        reader.hold(manifest)
    subject.gc()
    assert store.read_blob(Digest.of(b"layer")) == b"layer"
    reader.close()
    subject.gc()
    assert store.find_blob(Digest.of(b"layer")) is None
    with store.lease("late") as late, pytest.raises(BlobNotFound):
        late.hold(manifest)


def test_gc_keeps_what_is_placed_and_not_recorded(subject):
    """Between its placing and its change a blob is kept by the lease it was placed under."""
    with subject.store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        subject.gc()
        assert subject.store.read_blob(digest) == b"hello"
    subject.gc()
    with pytest.raises(BlobNotFound):
        subject.store.open_blob(digest)


def test_ended_lease_is_refused(subject):
    """Nothing is begun or held under a lease that has ended."""
    store = subject.store
    with store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        change = store.change(lease)
        ingest = store.ingest(lease)
        ingest.write(b"more")
    for call in (
        lambda: lease.hold(digest),
        lambda: store.ingest(lease),
        lambda: store.change(lease),
        change.commit,
        ingest.commit_blob,
    ):
        with pytest.raises(LeaseEnded):
            call()
    ingest.abort()


def test_inode_ranges_never_overlap(subject):
    """A key has one range for ever, ranges do not overlap, none begins below 2, more numbers mean a new range."""
    store = subject.store
    first = store.inode_base(b"a" * 300, 10)
    second = store.inode_base(b"b", 5)
    assert first == 2
    assert second == 12
    subject.reopen()
    store = subject.store
    assert store.inode_base(b"a" * 300, 10) == first
    assert store.inode_base(b"a" * 300, 4) == first
    assert store.inode_base(b"a" * 300, 11) == 17
    for count in (0, -1, 1 << 62):
        with pytest.raises(LimitExceeded):
            store.inode_base(b"c", count)


def test_generation_grows_with_every_change(subject):
    """The generation is the same while nothing is committed, and larger after a commit."""
    store = subject.store
    before = store.generation()
    with store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        assert store.generation() == before
        change = store.change(lease)
        change.add_blob(digest, 5)
        change.commit()
    assert store.generation() > before


def test_everything_is_there_after_reopening(subject):
    """Tags, manifests, layers and blobs are the same in a store that is opened again."""
    with subject.store.lease("test") as lease:
        change = subject.store.change(lease)
        manifest = subject.add_kit(lease, change, "kit", [b"layer"])
        change.set_tag(REPOSITORY, "1", manifest)
        change.commit()
    subject.reopen()
    store = subject.store
    assert store.get_tag(REPOSITORY, "1").manifest == manifest
    assert store.get_toc(store.get_manifest(manifest).layers[0])[0].size == 5


def test_tag_that_is_too_long_is_refused(subject):
    """A tag of 129 characters does not enter the index (S6)."""
    with subject.store.lease("test") as lease:
        digest = subject.put(lease, b"hello")
        with pytest.raises(LimitExceeded):
            subject.store.change(lease).set_tag(REPOSITORY, "x" * 129, digest)
