"""What ModelKits take on disk, against du(1) and against what garbage collection gives back."""

import os
import subprocess
from pathlib import Path

import pytest

from kitfs.modelkit.pack import pack
from kitfs.modelkit.usage import CONTENT, Usage, measure_usage
from kitfs.oci.reference import parse_reference
from kitfs.store.gc import gc
from kitfs.store.partials import Partial
from kitfs.store.store import Store


def disk_usage(home: Path, *options: str) -> int:
    """What du(1) says."""
    return int(
        subprocess.run(["du", "-s", *options, home], check=True, capture_output=True, text=True).stdout.split()[0]
    )


def check_sums(usage: Usage) -> None:
    """Everything adds up: parts to the total, and unique, shared and loose to the content."""
    assert sum(part.allocated for part in usage.parts.values()) == usage.total.allocated
    assert sum(part.apparent for part in usage.parts.values()) == usage.total.apparent
    content = sum(usage.parts[part].allocated for part in CONTENT)
    assert usage.unique + usage.shared + usage.loose == content
    assert sum(kit.unique for kit in usage.kits) == usage.unique
    assert all(kit.shared <= usage.shared for kit in usage.kits)
    assert usage.together == usage.unique + usage.shared


def test_everything_adds_up_to_what_du_says(many_forms: Path):
    """Plain, gzip, zstd, raw, linked, split and materialised ModelKits and the rest are the store, to the byte."""
    with Store.open(many_forms) as store:
        usage = measure_usage(store)
    assert usage.total.allocated == disk_usage(many_forms, "-B1")
    assert usage.total.apparent == disk_usage(many_forms, "-b")
    check_sums(usage)
    assert usage.parts["members"].allocated and usage.parts["recipes"].allocated and usage.shared


def test_what_a_linked_blob_shares_with_outside_counts(many_forms: Path):
    """A blob that is a hard link to another program's file counts in full, as with du(1) of the store alone."""
    with Store.open(many_forms) as store:
        linked = [digest for digest, record in store.iter_blobs() if record.form == "linked"]
        assert linked
        path = store.layout.blob(linked[0])
        before = measure_usage(store)
        os.link(path, path.with_name("again"))
        after = measure_usage(store)
    assert before.parts["blobs"].allocated >= path.stat().st_size
    assert after.parts["blobs"].allocated == before.parts["blobs"].allocated


@pytest.fixture
def fixtures_store(store_home: Path, shared_fixtures: Path, bring):
    """A store with the ModelKits of kit 1.7.0, by copy."""
    with Store.open(store_home) as store:
        bring(store, shared_fixtures / "kit-v1.7.0")
        yield store


def untag(store: Store, references: list[tuple[str, str]]) -> None:
    """Remove tags."""
    with store.lease("untag") as lease:
        change = store.change(lease)
        for repository, tag in references:
            change.remove_tag(repository, tag)
        change.commit()


def content_size(usage: Usage) -> int:
    """Bytes of all content."""
    return sum(usage.parts[part].allocated for part in CONTENT)


def test_unique_is_what_removing_gives_back(fixtures_store: Store):
    """Of each ModelKit in turn, untagging it and collecting garbage gives back its unique bytes, and no others."""
    usage = measure_usage(fixtures_store)
    assert len(usage.kits) == 7
    while usage.kits:
        kit = usage.kits[0]
        untag(fixtures_store, kit.references)
        left = measure_usage(fixtures_store)
        assert content_size(left) == content_size(usage)  # nothing has gone yet
        gc(fixtures_store)
        after = measure_usage(fixtures_store)
        assert content_size(usage) - content_size(after) == kit.unique
        check_sums(after)
        usage = after
    assert content_size(usage) == 0


def test_tags_of_one_modelkit_are_one(fixtures_store: Store):
    """Two tags of one ModelKit do not share it with each other."""
    [kit] = [kit for kit in measure_usage(fixtures_store).kits if ("localhost/myllm", "latest") in kit.references]
    assert kit.references == [("localhost/myllm", "3.1.4"), ("localhost/myllm", "latest")]
    before = kit.size
    untag(fixtures_store, [("localhost/myllm", "latest")])
    [kit] = [kit for kit in measure_usage(fixtures_store).kits if ("localhost/myllm", "3.1.4") in kit.references]
    assert kit.size == before


def test_a_parent_belongs_to_its_child(fixtures_store: Store):
    """A child is as large as its parent and itself; an untagged parent is none of its own any more."""
    by_name = {kit.references[0][0].rpartition("/")[2]: kit for kit in measure_usage(fixtures_store).kits}
    child, parent = by_name["tuned"], by_name["myllm"]
    untag(fixtures_store, [("localhost/myllm", tag) for tag in ("3.1.4", "latest", "3.1.4-fast", "3.1.4-gzip")])
    gc(fixtures_store)
    usage = measure_usage(fixtures_store)
    check_sums(usage)
    assert parent.digest not in {kit.digest for kit in usage.kits}
    [alone] = [kit for kit in usage.kits if kit.digest == child.digest]
    assert alone.size == child.size
    assert alone.logical == child.logical


def test_content_of_no_modelkit_is_loose(fixtures_store: Store):
    """A blob that nothing leads to is in no ModelKit, and a write in progress is in none either."""
    before = measure_usage(fixtures_store)
    with fixtures_store.lease("test") as lease:
        with fixtures_store.ingest(lease) as ingest:
            ingest.write(b"x" * 10_000)
            ingest.commit_blob()
        with fixtures_store.ingest(lease) as ingest:
            ingest.write(b"y" * 10_000)
            usage = measure_usage(fixtures_store)
    check_sums(usage)
    assert usage.loose >= 10_000 > before.loose == 0
    assert usage.parts["ingest"].apparent == 10_000


def test_a_partial_belongs_to_whoever_has_its_layer(fixtures_store: Store):
    """What is materialised so far of a member counts for the ModelKits that have its layer."""
    before = measure_usage(fixtures_store)
    kit = next(kit for kit in before.kits if "3.1.4-gzip" in str(kit.references))
    layer = fixtures_store.get_manifest(kit.digest).layers[0]
    partial = Partial(fixtures_store.layout, f"{layer.hex}.0", 1 << 20, 8)
    try:
        partial.path.write_bytes(b"x" * 50_000)
        after = measure_usage(fixtures_store)
    finally:
        partial.close()
    check_sums(after)
    [grown] = [other for other in after.kits if other.digest == kit.digest]
    added = after.parts["partials"].allocated
    assert added >= 50_000 and before.parts["partials"].allocated == 0
    assert (grown.unique - kit.unique, grown.shared) == (added, kit.shared)


def test_what_is_asked_for_is_counted_together(fixtures_store: Store):
    """Of some ModelKits, what they share with each other is in their sum once; the others are as they were."""
    usage = measure_usage(fixtures_store)
    wanted = [kit for kit in usage.kits if "gzip" in str(kit.references) or "fast" in str(kit.references)]
    some = measure_usage(fixtures_store, {kit.digest for kit in wanted})
    assert some.kits == wanted
    assert max(kit.size for kit in wanted) < some.together < sum(kit.size for kit in wanted)
    assert (some.unique, some.shared, some.total) == (usage.unique, usage.shared, usage.total)


def test_members_that_two_split_kits_share(store_home: Path, tmp_path: Path):
    """A large file that two packed ModelKits have is on disk once and shared by both; the rest is each one's own."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {path: .}\n")
    (context / "shared").write_bytes(os.urandom(1 << 20))
    with Store.open(store_home) as store:
        for number in range(2):
            (context / "own").write_bytes(os.urandom(1 << 18))
            pack(store, context, None, [parse_reference(f"kit:{number}")])
        usage = measure_usage(store)
    check_sums(usage)
    assert usage.shared == 1 << 20
    assert all(1 << 18 <= kit.unique < (1 << 18) + (64 << 10) for kit in usage.kits)
    assert all(kit.logical > kit.shared for kit in usage.kits)
