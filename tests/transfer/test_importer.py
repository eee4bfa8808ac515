"""Import: what comes in, and how it lies in the store."""

import json
from pathlib import Path

import pytest

from kitfs.digest import Digest, DigestMismatch
from kitfs.layer.errors import LayerMalformed
from kitfs.oci.manifest import NotAModelKit
from kitfs.oci.reference import parse_reference

KITS = ["kit-v0.1.0", "kit-v0.1.3", "kit-v0.2.3", "kit-v0.2.5", "kit-v0.4.0", "kit-v1.7.0"]
MODEL = "application/vnd.kitops.modelkit.model.v1"


def kit_list(path: Path) -> set[tuple[str, str, str]]:
    """(repository, tag, ModelKitID) of what kit's own list printed."""
    rows = [line.split() for line in (path / "kit-list.txt").read_text().splitlines()[1:]]
    return {(row[0], row[1], row[-1]) for row in rows}


def listed(store) -> set[tuple[str, str, str]]:
    return {
        (repository.removeprefix("localhost/"), tag, str(record.manifest))
        for repository, tag, record in store.iter_tags()
    }


def members(store, manifest: Digest) -> set[str]:
    """Digests of all files in a ModelKit's layers."""
    return {
        member.digest.hex()
        for layer in store.get_manifest(manifest).layers
        for member in store.get_toc(layer)
        if member.digest
    }


@pytest.mark.parametrize("version", KITS)
def test_names_and_ids_are_kits(bring, store, shared_fixtures, version):
    """Whole storage of each kit comes in under kit's names, tags and ModelKitIDs."""
    report = bring(shared_fixtures / version, copy=True)
    assert listed(store) == kit_list(shared_fixtures / version)
    assert report.warnings == [] and report.failures == []
    assert all(record.origin == "kit" for _, _, record in store.iter_tags())


@pytest.mark.parametrize("version", KITS)
def test_files_are_those_that_kit_unpacks(bring, store, shared_fixtures, version):
    """Each file that kit's unpack wrote is a member of its ModelKit or of its parents, by SHA-256."""
    bring(shared_fixtures / version, copy=True)
    for repository, tag, record in store.iter_tags():
        name = f"{repository.removeprefix('localhost/')}_{tag}".replace("/", "_").replace(":", "_")
        expected = shared_fixtures / version / "expected" / f"{name}.json"
        if not expected.exists():
            continue
        entries = json.loads(expected.read_text())
        entries = entries["entries"] if isinstance(entries, dict) else entries
        wanted = {item["sha256"] for item in entries if item.get("sha256") and item["path"] != "Kitfile"}
        chain = [record.manifest, *store.get_manifest(record.manifest).parents]
        assert wanted <= set().union(*(members(store, manifest) for manifest in chain)), (repository, tag)


def test_bare_tags_belong_to_the_folder(bring, store, shared_fixtures):
    """A layout's bare tags become <folder>:<tag>."""
    report = bring(shared_fixtures / "modctl/layout", copy=True)
    assert [(repository, tag) for repository, tag, _ in report.tags] == [
        ("localhost/layout", "raw"),
        ("localhost/layout", "tar"),
    ]


def test_as_names_the_repository(bring, shared_fixtures):
    """--as puts bare tags into the repository that was named."""
    report = bring(shared_fixtures / "modctl/layout", repository="registry.example.com/mp", copy=True)
    assert {repository for repository, _, _ in report.tags} == {"registry.example.com/mp"}


def test_import_needs_no_second_read(bring, store, shared_fixtures):
    """What is there already is kept: a second import writes no blob, and no inode changes."""
    bring(shared_fixtures / "kit-v1.7.0", copy=True)
    before = {path: path.stat().st_ino for path in (store.home / "blobs").rglob("*") if path.is_file()}
    report = bring(shared_fixtures / "kit-v1.7.0", copy=True)
    assert (report.counts.copied, report.counts.linked) == (0, 0)
    assert before == {path: path.stat().st_ino for path in (store.home / "blobs").rglob("*") if path.is_file()}


def test_layers_are_linked_where_the_owner_is_ours(bring, store, copy_home):
    """From a storage of the same owner and file system, layers are second names of kit's files."""
    home = copy_home("kit-v1.7.0")
    report = bring(home)
    assert report.counts.linked > 20
    for manifest, record in store.iter_manifests():
        for layer in record.layers:
            ours, kits = store.layout.blob(layer), home / "storage/blobs/sha256" / layer.hex
            assert ours.stat().st_ino == kits.stat().st_ino, manifest
            assert store.get_blob(layer).form == "linked"
            assert kits.stat().st_mode & 0o777 == 0o644


def test_copy_makes_files_of_our_own(bring, store, copy_home):
    """--copy links nothing: every blob has an inode of its own and mode 0444."""
    home = copy_home("kit-v0.4.0")
    bring(home, copy=True)
    kits = {path.stat().st_ino for path in home.rglob("*")}
    blobs = [path for path in (store.home / "blobs").rglob("*") if path.is_file()]
    assert all(path.stat().st_ino not in kits and path.stat().st_mode & 0o777 == 0o444 for path in blobs)


def test_links_outlive_kits_own_names(bring, store, copy_home):
    """A linked blob stays whole when kit removes its file."""
    home = copy_home("kit-v0.4.0")
    bring(home)
    for path in (home / "storage/blobs/sha256").iterdir():
        path.unlink()
    for digest, record in store.iter_blobs():
        assert len(store.read_blob(digest, limit=1 << 30)) == record.size


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("copy", [True, False])
def test_import_again_heals(bring, store, copy_home, damage, copy):
    """A blob, or recipe, that was damaged in the store has the right bytes after another import (I7)."""
    home = copy_home("kit-v0.2.5")
    bring(home, copy=True)
    (_, record), *_ = store.iter_manifests()
    for layer in record.layers:
        path = store.layout.blob_in_form(layer, store.get_blob(layer).form)
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        match damage:
            case "flip":
                path.write_bytes(data)
            case "truncate":
                path.write_bytes(data[:-1])
            case "delete":
                path.unlink()
    bring(home, copy=copy)
    for layer in record.layers:
        assert Digest.of(store.read_blob(layer, limit=1 << 30)) == layer


def test_storage_damaged_by_kit_is_refused(bring, store, copy_home):
    """A blob of kit's that lost its bytes is a digest mismatch, linked or copied, and the others come in."""
    home = copy_home("kit-v1.7.0")
    layer = home / "storage/blobs/sha256/c059557d82b3d7b2ae4d1a7c494fff8b7705bd1c0d107159809578708bbdbd33"
    data = bytearray(layer.read_bytes())
    data[700] ^= 4
    layer.write_bytes(data)
    for copy in (True, False):
        report = bring(home, copy=copy)
        assert [name for name, error in report.failures if isinstance(error, DigestMismatch)] == ["whole:dot"]
    assert store.find_tag("localhost/whole", "dot") is None
    assert store.find_tag("localhost/myllm", "latest") is not None


def test_a_reference_brings_its_parents(bring, store, shared_fixtures):
    """Imported by reference, a kit whose model is a reference has its parent with it, and remembers it."""
    tuned = parse_reference("registry.example.com:8080/acme/team_a/tuned:1")
    report = bring(shared_fixtures / "kit-v1.7.0", tuned, copy=True)
    assert [(repository, tag) for repository, tag, _ in report.tags] == [
        ("registry.example.com:8080/acme/team_a/tuned", "1"),
        ("localhost/myllm", "3.1.4"),
    ]
    parent = store.get_tag("localhost/myllm", "3.1.4").manifest
    assert store.get_manifest(report.kits[0].manifest).parents == [parent]


def test_a_parent_of_the_same_name_set_here_stays(bring, store, shared_fixtures):
    """A tag that kitfs set is not moved because somebody's parent has its name."""
    report = bring(shared_fixtures / "kit-v1.7.0", parse_reference("myllm:3.1.4-gzip"), copy=True)
    with store.lease("test") as lease:
        change = store.change(lease)
        change.set_tag("localhost/myllm", "3.1.4", report.kits[0].manifest, "here")
        change.commit()
    bring(shared_fixtures / "kit-v1.7.0", parse_reference("registry.example.com:8080/acme/team_a/tuned:1"), copy=True)
    assert store.get_tag("localhost/myllm", "3.1.4").manifest == report.kits[0].manifest


def test_a_cycle_of_parents_ends(bring, layout):
    """Two kits that name each other as parent come in once each."""
    for name, parent in (("a", "b"), ("b", "a")):
        layout.kit(f"{name}:1", [], kitfile={"model": {"path": f"{parent}:1"}, "package": {"name": name}})
    report = bring(layout.path, parse_reference("a:1"))
    assert sorted(tag[0] for tag in report.tags) == ["localhost/a", "localhost/b"]


def test_a_chain_of_parents_ends_at_ten(bring, layout):
    """Of a chain of 14 kits, the one asked for and ten parents come in."""
    for number in range(14):
        kitfile = {"package": {"name": f"k{number}"}, "model": {"path": f"k{number + 1}:1"}}
        layout.kit(f"k{number}:1", [], kitfile=kitfile)
    report = bring(layout.path, parse_reference("k0:1"))
    assert len(report.tags) == 11


def test_a_missing_parent_is_said(bring, layout):
    """A kit whose parent is nowhere comes in with a warning that names it."""
    layout.kit("child", [], kitfile={"model": {"path": "elsewhere:9"}})
    assert "elsewhere:9" in " ".join(bring(layout.path).warnings)


@pytest.mark.parametrize("packing", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("form", ["tar", "raw"])
def test_each_form_of_layer(bring, store, layout, make_tar, packers, form, packing):
    """Tar and raw, plain, gzip and zstd: members with their digests, and the diff_id of the decoded bytes."""
    body = make_tar({"m/weights.bin": b"weights" * 1000, "m/empty": b""}) if form == "tar" else b"weights" * 1000
    published = packers[packing](body)
    manifest = layout.kit("v1", [(f"{MODEL}.{form}{packing}", published)])
    bring(layout.path)
    layer = store.find_layer(Digest.of(published))
    assert (layer.format, layer.diff_id) == (form, Digest.of(body))
    assert Digest.of(b"weights" * 1000).hex in members(store, manifest)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.jozu.model.content.v1.tar+gzip",
        "application/vnd.jozu.dataset.content.v1.tar+gzip",
        "application/vnd.kitops.model.content.v1.tar+gzip",
        "application/vnd.kitops.modelkit.code.v1.tar+gzip",
        "application/vnd.cncf.model.weight.v1.tar+gzip",
    ],
)
def test_each_family_of_names(bring, store, layout, make_tar, packers, media_type):
    """Layers under the older and the ModelPack names are indexed like kit's."""
    published = packers["+gzip"](make_tar({"x": b"x"}))
    layout.kit("v1", [(media_type, published)])
    assert bring(layout.path).warnings == []
    assert store.find_layer(Digest.of(published)).member_count == 1


def test_the_specifications_example(bring, store, layout, make_tar, packers):
    """A manifest in the specification's own form: no mediaType, jozu names for config and layer."""
    published = packers["+gzip"](make_tar({"model/w.bin": b"w"}))
    manifest = layout.kit(
        "3.1.4",
        [("application/vnd.jozu.model.content.v1.tar+gzip", published)],
        kitfile={"manifestVersion": "v1.0.0", "package": {"name": "x"}, "model": {"path": "./model"}},
        config_type="application/vnd.jozu.model.config.v1+json",
    )
    bring(layout.path)
    assert store.get_tag("localhost/made", "3.1.4").manifest == manifest
    assert members(store, manifest) == {Digest.of(b"w").hex}


def test_an_unknown_layer_type_is_kept_with_a_warning(bring, store, layout, make_tar):
    """A layer of a type that nobody knows does not keep a ModelKit out: its blob is kept, one warning says so."""
    layout.kit("v1", [(f"{MODEL}.tar", make_tar({"a": b"a"})), ("application/x-future.v9", b"what is this")])
    report = bring(layout.path)
    assert len(report.warnings) == 1 and "application/x-future.v9" in report.warnings[0]
    assert store.get_blob(Digest.of(b"what is this")).size == 12
    assert store.find_layer(Digest.of(b"what is this")) is None


def test_layers_null(bring, store, layout):
    """An empty ModelKit as kit 1.7 writes it, with layers null, comes in."""
    manifest = layout.kit("0", [], change=lambda value: value.update(layers=None))
    bring(layout.path)
    assert store.get_manifest(manifest).layers == []


def test_one_blob_listed_twice(bring, store, layout, make_tar):
    """A digest that occurs twice, under one media type or two, is one blob."""
    data = make_tar({"a": b"a"})
    kinds = [f"{MODEL}.tar", f"{MODEL}.tar", "application/vnd.kitops.modelkit.dataset.v1.tar"]
    manifest = layout.kit("v1", [(kind, data) for kind in kinds])
    report = bring(layout.path)
    assert len(store.get_manifest(manifest).layers) == 3
    assert report.counts.copied + report.counts.linked == 3
    assert store.get_blob(Digest.of(data)).media_types


def test_other_artifacts_are_passed_over(bring, store, layout):
    """An image and an index beside a ModelKit are passed over with a warning each; by name they are an error."""
    layout.kit("good", [])
    layout.manifest("index", b'{"schemaVersion":2,"manifests":[]}', "application/vnd.oci.image.index.v1+json")
    layout.kit("image", [], config_type="application/vnd.oci.image.config.v1+json")
    report = bring(layout.path)
    assert [tag for _, tag, _ in report.tags] == ["good"]
    assert len(report.warnings) == 2 and report.failures == []
    for tag in ("index", "image"):
        with pytest.raises(NotAModelKit):
            bring(layout.path, parse_reference(f"made:{tag}"))


def test_a_broken_kit_does_not_keep_the_others_out(bring, layout, make_tar):
    """Of a whole layout, what is sound comes in and what is not is reported by name."""
    layout.kit("broken", [(f"{MODEL}.tar+gzip", make_tar({"a": b"a"}))])
    layout.kit("sound", [(f"{MODEL}.tar", make_tar({"b": b"b"}))])
    report = bring(layout.path)
    assert [tag for _, tag, _ in report.tags] == ["sound"]
    assert [(name, type(error)) for name, error in report.failures] == [("made:broken", LayerMalformed)]


def test_an_unnamed_manifest_is_found_by_digest(bring, store, layout):
    """A manifest without a name comes in whole, untagged, and by its digest."""
    manifest = layout.kit(None, [])
    assert bring(layout.path).tags == []
    assert store.find_manifest(manifest) is not None
    report = bring(layout.path, parse_reference(str(manifest)))
    assert [kit.manifest for kit in report.kits] == [manifest]


def test_progress_adds_up(bring, shared_fixtures):
    """Each layer is announced with its size, its bytes are told, and it is finished."""

    class RecordedStep:
        def __init__(self, size: int) -> None:
            self.size, self.done, self.is_finished = size, 0, False

        def advance(self, size: int) -> None:
            self.done += size

        def finish(self) -> None:
            self.is_finished = True

    steps: list[RecordedStep] = []

    class Recorder:
        def begin(self, _name: str, size: int) -> RecordedStep:
            steps.append(RecordedStep(size))
            return steps[-1]

    bring(shared_fixtures / "kit-v0.4.0", copy=True, progress=Recorder())
    assert len(steps) == 7
    assert all(step.size == step.done and step.is_finished for step in steps)
