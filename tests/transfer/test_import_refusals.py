"""Import: what is refused, each time with a named error and a store that is as it was."""

import json
import os

import pytest

from kitfs.digest import Digest, DigestMismatch
from kitfs.errors import KitfsError, MalformedError
from kitfs.layer.errors import LayerMalformed
from kitfs.oci.kitfile import KitfileMalformed
from kitfs.oci.manifest import ManifestMalformed, NotAModelKit
from kitfs.oci.reference import parse_reference
from kitfs.store.errors import SizeMismatch
from kitfs.transfer.importer import ReferenceNotInSource
from kitfs.transfer.intake import LayerTypeConflict
from kitfs.transfer.parents import ConfigMismatch
from kitfs.transfer.source import SourceBlobMissing, SourceMalformed

MODEL = "application/vnd.kitops.modelkit.model.v1"


def test_one_blob_as_tar_and_raw_is_refused(bring, store, layout, make_tar, is_empty):
    """One blob can not be a tar and plain bytes at once: a named error, the store unchanged."""
    data = make_tar({"a": b"a"})
    layout.kit("v1", [(f"{MODEL}.tar", data), ("application/vnd.kitops.modelkit.dataset.v1.raw", data)])
    with pytest.raises(LayerTypeConflict):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


BODIES = {
    "gzip under tar": (".tar", "+gzip", slice(None)),
    "zstd under tar": (".tar", "+zstd", slice(None)),
    "tar under gzip": (".tar+gzip", "", slice(None)),
    "tar under zstd": (".tar+zstd", "", slice(None)),
    "gzip under zstd": (".tar+zstd", "+gzip", slice(None)),
    "tar cut short": (".tar", "", slice(0, 700)),
    "gzip cut short": (".tar+gzip", "+gzip", slice(0, -4)),
    "zstd cut short": (".tar+zstd", "+zstd", slice(0, -1)),
    "empty gzip": (".tar+gzip", "+gzip", slice(0, 0)),
    "raw under gzip": (".raw+gzip", "", slice(None)),
}


@pytest.mark.parametrize("case", BODIES)
@pytest.mark.parametrize("copy", [True, False])
def test_a_body_of_another_type_is_refused(bring, store, layout, make_tar, packers, is_empty, case, copy):
    """A body that is not what its media type says: a named error with the layer, the store unchanged."""
    suffix, packing, part = BODIES[case]
    data = packers[packing](make_tar({"m": bytes(range(256)) * 40}))[part]
    layout.kit("v1", [(f"{MODEL}.tar", make_tar({"good": b"1"})), (f"{MODEL}{suffix}", data)])
    with pytest.raises(LayerMalformed if data else ManifestMalformed) as caught:
        bring(layout.path, parse_reference("made:v1"), copy=copy)
    assert not data or Digest.of(data) == caught.value.digest
    assert is_empty(store)


def test_bombs_are_admitted_as_far_as_is_said(bring, store, layout, make_tar, packers, is_empty):
    """Zeros of 400 MiB are refused where nothing beyond the usual is admitted, and imported by default."""
    data = packers["+gzip"](make_tar({"preallocated": bytes(400 << 20)}))
    layout.kit("v1", [(f"{MODEL}.tar+gzip", data)])
    with pytest.raises(LayerMalformed, match="decompression bomb"):
        bring(layout.path, parse_reference("made:v1"), expansion_max=0)
    assert is_empty(store)
    bring(layout.path, parse_reference("made:v1"))
    assert store.find_layer(Digest.of(data)).size_members == 400 << 20


def test_one_manifest_with_two_sizes_is_refused(bring, store, layout, make_tar, is_empty):
    """An index that lists one manifest with two sizes is refused as a whole: one of the two is not true."""
    layout.kit("v1", [(f"{MODEL}.tar", make_tar({"a": b"a"}))])
    layout.manifests.append({**layout.manifests[0], "size": layout.manifests[0]["size"] + 1})
    layout.write_index()
    with pytest.raises(MalformedError, match="two sizes"):
        bring(layout.path)
    assert is_empty(store)


def spoil(path: tuple, value: object):
    def change(manifest: dict) -> None:
        target = manifest
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


HEX = "5e38e80ddcaa48a108f7a60f836ed82f52b1ab7876f0d0517b31f2a1583c1167"
MANIFESTS = {
    "both manifests and layers": spoil(("manifests",), []),
    "size 0": spoil(("layers", 0, "size"), 0),
    "size -1": spoil(("layers", 0, "size"), -1),
    "size 2^63": spoil(("layers", 0, "size"), 2**63),
    "size 1.0": spoil(("layers", 0, "size"), 1.0),
    "size true": spoil(("layers", 0, "size"), True),
    "size as text": spoil(("layers", 0, "size"), "1"),
    "short digest": spoil(("layers", 0, "digest"), f"sha256:{HEX[1:]}"),
    "upper-case digest": spoil(("layers", 0, "digest"), f"sha256:{HEX.upper()}"),
    "other algorithm": spoil(("layers", 0, "digest"), f"sha512:{HEX}{HEX}"),
    "digest is a path": spoil(("layers", 0, "digest"), "sha256:../../../../etc/passwd"),
    "one digest with two sizes": lambda manifest: manifest["layers"].append({**manifest["layers"][0], "size": 7}),
    "NaN": spoil(("annotations",), {"a": float("nan")}),
    "layers is a number": spoil(("layers",), 7),
    "schema version 1": spoil(("schemaVersion",), 1),
    "config of size 0": spoil(("config", "size"), 0),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_malformed_manifest_is_refused(bring, store, layout, make_tar, is_empty, case):
    """Each malformed manifest is a named error, and the store is as it was."""
    layout.kit("v1", [(f"{MODEL}.tar", make_tar({"a": b"a"}))], change=MANIFESTS[case])
    with pytest.raises((ManifestMalformed, NotAModelKit)):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


RAW_MANIFESTS = {
    "duplicate keys": b'{"schemaVersion":2,"schemaVersion":2,"config":{},"layers":[]}',
    "depth 2000": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "not JSON": b"\x00\x01\x02",
    "empty object": b"{}",
    "a list": b"[]",
}


@pytest.mark.parametrize("case", RAW_MANIFESTS)
def test_manifest_bytes_that_are_no_manifest(bring, store, layout, is_empty, case):
    """Bytes that are not a manifest at all are a named error, and the store is as it was."""
    layout.manifest("v1", RAW_MANIFESTS[case])
    with pytest.raises(MalformedError):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


@pytest.mark.parametrize("count", [4 << 20, 1_000_000])
def test_a_huge_manifest_is_refused(bring, store, layout, is_empty, count):
    """A manifest above 4 MiB, or of a million layers, is a named error, and the store is as it was."""
    layers = b",".join([b"{}"] * count) if count == 1_000_000 else b" " * count
    layout.manifest("v1", b'{"schemaVersion":2,"config":{},"layers":[' + layers + b"]}")
    with pytest.raises(MalformedError):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


KITFILES = {
    "absolute path": {"model": {"path": "/etc/passwd"}},
    "escaping path": {"code": [{"path": "../../x"}]},
    "one path twice": {"code": [{"path": "a"}], "docs": [{"path": "./a"}]},
    "a list for an object": {"model": []},
}


@pytest.mark.parametrize("case", KITFILES)
def test_a_malformed_kitfile_is_refused(bring, store, layout, is_empty, case):
    """A config whose Kitfile breaks the rules is a named error, and the store is as it was."""
    layout.kit("v1", [], kitfile=KITFILES[case])
    with pytest.raises(KitfileMalformed):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


def test_a_config_that_names_another_layer_is_refused(bring, store, layout, is_empty):
    """Config and manifest must agree about layers."""
    layout.kit("v1", [], kitfile={"model": {"path": "m", "digest": f"sha256:{HEX}"}})
    with pytest.raises(ConfigMismatch):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
@pytest.mark.parametrize("copy", [True, False])
def test_wrong_bytes_are_refused(bring, store, layout, make_tar, is_empty, which, copy):
    """Bytes that are not the digest's, of the right size or another: a named error, the store unchanged."""
    data = make_tar({"a": b"a" * 5000})
    manifest = layout.kit("v1", [(f"{MODEL}.tar", data)])
    config = json.loads((layout.path / "blobs/sha256" / manifest.hex).read_text())["config"]["digest"]
    digest = {"layer": Digest.of(data), "config": Digest.parse(config), "manifest": manifest}[which]
    path = layout.path / "blobs/sha256" / digest.hex
    original = path.read_bytes()
    for wrong, error in ((b"\x00" + original[1:], DigestMismatch), (original + b"x", SizeMismatch),
                         (original[:-1], SizeMismatch)):  # fmt: skip
        path.write_bytes(wrong)
        with pytest.raises(error):
            bring(layout.path, parse_reference("made:v1"), copy=copy)
        assert is_empty(store)


def test_a_missing_blob_is_named(bring, store, layout, make_tar, is_empty):
    """A layer that the layout does not hold is a named error with its digest, and the store is as it was."""
    data = make_tar({"a": b"a"})
    layout.kit("v1", [(f"{MODEL}.tar", data)])
    (layout.path / "blobs/sha256" / Digest.of(data).hex).unlink()
    with pytest.raises(SourceBlobMissing) as caught:
        bring(layout.path, parse_reference("made:v1"))
    assert caught.value.digest == Digest.of(data)
    assert is_empty(store)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "linked folder"])
def test_blobs_that_are_not_files_are_refused(bring, store, layout, make_tar, is_empty, tmp_path, kind):
    """A link, folder or pipe in place of a blob is refused, at once and without following it."""
    data = make_tar({"a": b"a"})
    layout.kit("v1", [(f"{MODEL}.tar", data)])
    path = layout.path / "blobs/sha256" / Digest.of(data).hex
    if kind == "linked folder":
        (layout.path / "blobs/sha256").rename(tmp_path / "outside")
        (layout.path / "blobs/sha256").symlink_to(tmp_path / "outside")
    else:
        path.rename(tmp_path / "outside")
        {"link": lambda: path.symlink_to(tmp_path / "outside"), "folder": path.mkdir,
         "pipe": lambda: os.mkfifo(path)}[kind]()  # fmt: skip
    with pytest.raises(SourceMalformed):
        bring(layout.path, parse_reference("made:v1"))
    assert is_empty(store)


def test_an_unknown_reference_lists_what_is_there(bring, store, layout, is_empty):
    """A reference that the source does not hold is not found, and the hint says what it holds."""
    layout.kit("v1", [])
    with pytest.raises(ReferenceNotInSource) as caught:
        bring(layout.path, parse_reference("made:v2"))
    assert "made:v1" in caught.value.hint
    assert is_empty(store)


def test_errors_are_never_foreign(bring, store, layout, make_tar):
    """Whatever bytes stand for a layer, only errors of our own leave an import."""
    for number in range(60):
        data = make_tar({"a": bytes(200)})[: 512 + number * 9] + bytes([number]) * number
        for suffix in (".tar", ".tar+gzip", ".tar+zstd", ".raw+zstd"):
            layout.kit(f"t{number}{suffix.replace('+', '-').replace('.', '-')}", [(f"{MODEL}{suffix}", data)])
    report = bring(layout.path)
    assert all(isinstance(error, KitfsError) for _, error in report.failures)
    assert len(report.failures) + len(report.tags) == 240
