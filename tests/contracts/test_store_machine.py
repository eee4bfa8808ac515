"""Any order of operations gives what a dictionary gives."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from kitfs.digest import Digest

TAGS = st.tuples(st.sampled_from(["localhost/a", "localhost/b", "localhost/" + "c" * 220]), st.sampled_from("12"))
DATA = st.sampled_from([b"", b"a", b"b", b"c" * 2_000])


class StoreMachine(RuleBasedStateMachine):
    """Kits, tags, leases, GC and reopening, against dictionaries."""

    leases = Bundle("leases")

    def __init__(self, make_subject, kind):
        super().__init__()
        self.subject = make_subject(kind)
        self.tags: dict[tuple[str, str], Digest] = {}
        self.kits: dict[Digest, list[bytes]] = {}
        self.held: dict[object, set[Digest]] = {}

    @rule(target=leases)
    def begin(self):
        lease = self.subject.store.lease("machine")
        self.held[lease] = set()
        return lease

    @rule(lease=consumes(leases))
    def end(self, lease):
        lease.close()
        del self.held[lease]

    @rule(lease=leases, name=st.sampled_from("xyz"), layers=st.lists(DATA, max_size=3), tag=st.none() | TAGS)
    def add_kit(self, lease, name, layers, tag):
        change = self.subject.store.change(lease)
        manifest = self.subject.add_kit(lease, change, name, layers)
        if tag:
            change.set_tag(*tag, manifest)
            self.tags[tag] = manifest
        change.commit()
        self.kits[manifest] = layers
        self.held[lease].add(manifest)

    @rule(lease=leases, tag=TAGS, other=TAGS)
    def copy_tag(self, lease, tag, other):
        if tag in self.tags:
            change = self.subject.store.change(lease)
            change.set_tag(*other, self.tags[tag])
            change.commit()
            self.tags[other] = self.tags[tag]
            self.held[lease].add(self.tags[tag])

    @rule(lease=leases, tag=TAGS)
    def remove_tag(self, lease, tag):
        if tag in self.tags:
            change = self.subject.store.change(lease)
            change.remove_tag(*tag)
            change.commit()
            del self.tags[tag]

    @rule(lease=leases, data=DATA)
    def abandon(self, lease, data):
        with self.subject.store.ingest(lease) as ingest:
            ingest.write(data)

    @rule()
    def collect(self):
        self.subject.gc()
        kept = set(self.tags.values()).union(*self.held.values())
        self.kits = {digest: layers for digest, layers in self.kits.items() if digest in kept}
        assert {digest for digest, _ in self.subject.store.iter_manifests()} == set(self.kits)

    @rule()
    def reopen(self):
        if not self.held:
            self.subject.reopen()

    @invariant()
    def tags_are_as_set(self):
        found = {(repository, tag): record.manifest for repository, tag, record in self.subject.store.iter_tags()}
        assert found == self.tags

    @invariant()
    def kits_are_whole(self):
        for manifest, layers in self.kits.items():
            record = self.subject.store.get_manifest(manifest)
            assert [self.subject.store.read_blob(layer) for layer in record.layers] == layers

    def teardown(self):
        for lease in self.held:
            lease.close()
        self.subject.close()


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_any_order_of_operations_matches_the_model(tmp_path, subject_type, kind):
    """Put, tag, untag, lease, abandon, collect and reopen in any order agree with dictionaries."""
    homes = iter(range(1_000_000))

    def make(kind):
        return subject_type(tmp_path / str(next(homes)) if kind == "disk" else None)

    run_state_machine_as_test(
        lambda: StoreMachine(make, kind), settings=settings(max_examples=15, stateful_step_count=25)
    )
