"""Two ModelKits compared: kitops' own cases for manifests, then members."""

import io
import itertools
import json
import re
import tarfile
from pathlib import Path

import pytest

from kitfs.digest import Digest
from kitfs.modelkit.compare import MemberChange, compare_manifests, compare_members
from kitfs.modelkit.resolve import find_manifest, open_kit
from kitfs.oci.manifest import parse_manifest
from kitfs.oci.reference import parse_reference
from kitfs.store.store import Store


def load(path: Path):
    """One of kitops' manifests; its digests are words, so each becomes the digest of its word."""
    raw = re.sub(r'"sha256:(\w+)"', lambda match: f'"{Digest.of(match[1].encode())}"', path.read_text())
    return json.loads(raw), raw.encode()


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("B", "different-config"),
        ("C", "different-layer"),
        ("D", "annotation-mismatch"),
        ("E", "mixed-diff"),
    ],
)
def test_manifests_compare_as_kitops_has_them(corpora: Path, other: str, expected: str):
    """Each of kitops' pairs of manifests gives the result that kitops expects."""
    folder = corpora / "kitops/compare-manifest"
    a, b = (parse_manifest(load(folder / f"manifest{name}.json")[1]) for name in ("A", other))
    result = compare_manifests(a, b)
    wanted = load(folder / f"{expected}.json")[0]
    assert (result.same_config, result.annotations_match) == (wanted["SameConfig"], wanted["AnnotationsMatch"])
    for key, layers in (
        ("SharedLayers", result.shared),
        ("UniqueLayersA", result.unique_a),
        ("UniqueLayersB", result.unique_b),
    ):  # kitops compares them in any order
        assert {str(layer.digest) for layer in layers} == {layer["digest"] for layer in wanted[key]}
        assert len(layers) == len(wanted[key])


def test_every_case_of_kitops_is_tried(corpora: Path):
    """There is no case beside the four, and each of the five manifests is in one."""
    names = {path.stem for path in (corpora / "kitops/compare-manifest").iterdir()}
    cases = {"different-config", "different-layer", "annotation-mismatch", "mixed-diff"}
    assert names == cases | {f"manifest{letter}" for letter in "ABCDE"}


@pytest.fixture
def compared(store_home: Path, tmp_path: Path, bring, make_layout):
    """Brings in two ModelKits of given layers and compares their members."""
    numbers = itertools.count()
    with Store.open(store_home) as store:

        def compare(*layers) -> list[MemberChange]:
            kits = []
            for number, entries in zip(numbers, layers, strict=False):
                bring(store, make_layout(tmp_path / f"kit{number}", "1", entries))
                digest = find_manifest(store, parse_reference(f"kit{number}:1"))
                kits.append(open_kit(store, digest))
            return compare_members(store, *kits)

        yield compare


def test_members_are_added_modified_and_deleted(compared, make_layer):
    """What only the second has is A with its size there, other bytes are M, what only the first has is D."""
    old = make_layer("", {"same": b"same", "gone": b"123", "other": b"1"})
    new = make_layer("", {"same": b"same", "other": b"22", "a/new": b"4444"})
    assert compared([old], [new]) == [
        MemberChange("A", b"a/new", 4),
        MemberChange("D", b"gone", 3),
        MemberChange("M", b"other", 2),
    ]


def test_files_in_other_layers_are_no_difference(compared, make_layer):
    """The same files, compressed in another way or spread over other layers, are the same."""
    first = {"a": b"a" * 1000, "b": b"b"}
    split = [make_layer("+gzip", {"a": first["a"]}), make_layer("+zstd", {"b": b"b"})]
    assert compared([make_layer("", first)], split) == []


def test_a_shared_layer_has_no_changes(compared, make_layer):
    """Files of a layer that both have are not listed, whatever else differs."""
    shared = make_layer("", {"shared": b"s"})
    assert compared([shared], [shared, make_layer("", {"more": b"m"})]) == [MemberChange("A", b"more", 1)]


def test_a_path_that_is_there_twice_counts_once(compared, make_layer):
    """A file that two layers of a ModelKit have at one path is one file."""
    twice = [make_layer("", {"x": b"1", "y": b"2"}), make_layer("", {"x": b"1", "z": b"3"})]
    assert compared([make_layer("", {"x": b"1"})], twice) == [MemberChange("A", b"y", 1), MemberChange("A", b"z", 1)]
    assert compared(twice, [make_layer("+gzip", {"x": b"1"})]) == [
        MemberChange("D", b"y", 1),
        MemberChange("D", b"z", 1),
    ]


def tar_with_mode(mode: int) -> bytes:
    """A tar of one empty file with permission bits."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        info = tarfile.TarInfo("run.sh")
        info.mode = mode
        tar.addfile(info)
    return raw.getvalue()


def test_permissions_are_a_difference(compared):
    """A file whose permission bits alone differ is M."""
    code = "application/vnd.kitops.modelkit.code.v1.tar"
    assert compared([(code, tar_with_mode(0o644))], [(code, tar_with_mode(0o755))]) == [MemberChange("M", b"run.sh", 0)]


def test_old_and_new_layers_compare_by_where_they_are_unpacked(store_home: Path, shared_fixtures: Path, bring):
    """One tree packed by kit 0.2.5 and 1.7.0 shares no layer and differs only by the docs that 0.2.5 did not know."""
    kits = []
    with Store.open(store_home) as store:
        for name in ("kit-v0.2.5", "kit-v1.7.0"):
            bring(store, shared_fixtures / name)
            kits.append(open_kit(store, find_manifest(store, parse_reference("myllm:3.1.4"))))
        assert compare_manifests(kits[0].manifest, kits[1].manifest).shared == ()
        changes = compare_members(store, *kits)
    assert changes == [MemberChange("A", b"README.md", 35), MemberChange("A", b"docs/card.md", 31)]
