"""Members cut out of a decoded layer: told as stored only when they are recorded."""

import pytest

from kitfs.digest import Digest
from kitfs.layer.member_writer import MemberWriter
from kitfs.store.errors import MemberNotFound
from kitfs.store.records import TocMember


def test_members_whose_recording_failed_are_not_told_as_stored(layers):
    """A commit that fails is the error that readers get, not a second, empty commit that "succeeds" at the end."""
    store, data, stored = layers.store, b"weights", []
    digest = Digest.of(data)

    def is_wanted(wanted):
        store.layout.member(wanted).unlink()  # what makes the commit fail that follows
        return True

    with store.lease("test") as lease:
        toc = [TocMember(b"w", 0, 0o644, len(data), 0, digest.raw)]
        writer = MemberWriter(
            store, lease, toc, is_wanted=is_wanted, on_stored=stored.extend, on_corrupt=lambda *_: None
        )
        with pytest.raises(MemberNotFound):
            writer.take(memoryview(data))
        writer.close()
    assert stored == []
    assert store.find_member(digest) is None
