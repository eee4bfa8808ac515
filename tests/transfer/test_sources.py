"""Sources: what a path is taken for, what it names, and what of it is refused."""

import base64
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from kitfs.archive.tar_toc import TarMalformed
from kitfs.digest import Digest
from kitfs.errors import KitfsError, MalformedError
from kitfs.oci.reference import parse_reference
from kitfs.transfer.detect import RepositoryNotNeeded, open_source
from kitfs.transfer.kit_storage import KitStorage, decode_repository
from kitfs.transfer.oci_archive import LayoutArchive, scan_archive
from kitfs.transfer.oci_layout import LayoutFolder, RepositoryNeeded
from kitfs.transfer.source import SourceMalformed, SourceNotFound, SourceNotRecognised


def names(path: Path, **options) -> list[str]:
    source = open_source(path, **options)
    try:
        return [entry.display for entry in source.iter_entries()]
    finally:
        source.close()


def archive(layout_path: Path, target: Path, *options: str) -> Path:
    subprocess.run(["tar", "-C", layout_path, "-cf", target, *options, "."], check=True)
    return target


@pytest.mark.parametrize("part", ["", "storage", "storage/localhost/myllm"])
def test_older_storage_in_each_place(shared_fixtures, part):
    """kit's home, its storage and one repository's folder in it name the same ModelKit (kit 0.1 and 0.2)."""
    path = shared_fixtures / "kit-v0.1.0" / part
    assert names(path) == ["myllm:3.1.4"]
    assert isinstance(open_source(path), KitStorage)


@pytest.mark.parametrize("part", ["", "storage"])
def test_newer_storage_in_each_place(shared_fixtures, part):
    """kit's home and its storage name the same ModelKits (kit 0.3 and newer)."""
    assert names(shared_fixtures / "kit-v1.7.0" / part) == [
        "empty:0",
        "myllm:3.1.4",
        "myllm:3.1.4-fast",
        "myllm:3.1.4-gzip",
        "myllm:latest",
        "one-file:1",
        "whole:dot",
        "registry.example.com:8080/acme/team_a/tuned:1",
    ]


def test_a_repository_folder_with_a_host(copy_home):
    """One repository's folder of an older storage has the name that its place says, host and port included."""
    storage = copy_home("kit-v0.1.3") / "storage"
    (storage / "registry.example.com:8080/acme").mkdir(parents=True)
    (storage / "localhost/myllm").rename(storage / "registry.example.com:8080/acme/team_a")
    expected = ["registry.example.com:8080/acme/team_a:3.1.4"]
    assert names(storage / "registry.example.com:8080/acme/team_a") == expected
    assert names(storage) == expected


def test_both_shapes_at_once(copy_home):
    """Where kit has not moved its older repositories yet, both are named, and the newer shape goes before."""
    new, old = copy_home("kit-v1.7.0") / "storage", copy_home("kit-v0.2.5") / "storage"
    (old / "localhost/myllm").rename(old / "localhost/legacy")
    (old / "localhost").rename(new / "localhost")
    assert "legacy:3.1.4" in names(new)
    (new / "localhost/legacy").rename(new / "localhost/myllm")
    source = open_source(new)
    entry = source.find_entry(parse_reference("myllm:3.1.4"))
    assert entry.descriptor.digest.hex.startswith("287937ed")
    source.close()


def test_untagged_kits_of_kit(copy_home, kit_file):
    """What kit packed without a tag is named by its digest."""
    home = copy_home("kit-v0.4.0")
    kit_file(home, "localhost/myllm", "tags").unlink()
    kit_file(home, "localhost/myllm", "index").rename(kit_file(home, "localhost/_", "index"))
    digest = "sha256:7c53a6e85d72b4688284e339bc2cbe7da25f69ef0587393abd1942d7585dca64"
    assert names(home) == [digest]
    source = open_source(home)
    assert source.find_entry(parse_reference(digest)).descriptor.digest == Digest.parse(digest)
    source.close()


def test_a_digest_in_its_repository(shared_fixtures):
    """repository@digest is found there and not in another repository."""
    digest = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
    source = open_source(shared_fixtures / "kit-v1.7.0")
    assert source.find_entry(parse_reference(f"myllm@{digest}")) is not None
    assert source.find_entry(parse_reference(digest)) is not None
    assert source.find_entry(parse_reference(f"whole@{digest}")) is None
    source.close()


def test_names_in_a_layout(layout):
    """A ref.name is a bare tag of the folder's repository, or a full reference."""
    for name in ("v1", "latest", "other:2", "registry.example.com:8080/a/b:3"):
        layout.kit(name, [])
    assert names(layout.path) == ["made:v1", "made:latest", "other:2", "registry.example.com:8080/a/b:3"]
    assert names(layout.path, repository="localhost/x/y")[:2] == ["x/y:v1", "x/y:latest"]


@pytest.mark.parametrize("name", ["../../etc:1", "A/B:1", "a//b:1", "-x", "a:b:c", "x" * 200, "a\nb", "", "/abs:1"])
def test_hostile_names_are_passed_over(layout, name):
    """A ref.name that the grammar refuses is passed over with a warning; the others are named."""
    layout.kit("good", [])
    layout.kit(name, [])
    source = open_source(layout.path)
    assert [entry.display for entry in source.iter_entries()] == ["made:good"]
    assert len(source.warnings) == 1
    source.close()


def test_a_folder_that_can_not_name_a_repository(layout, tmp_path):
    """Bare tags in a folder whose name is not a repository's need --as, and the hint says so."""
    layout.kit("v1", [])
    odd = layout.path.rename(tmp_path / "Odd Name")
    with pytest.raises(RepositoryNeeded) as caught:
        names(odd)
    assert "--as" in caught.value.hint
    assert names(odd, repository="localhost/fine") == ["fine:v1"]


def test_as_is_refused_for_kits_storage(shared_fixtures):
    """--as has nothing to name in kit's storage, and says so instead of doing nothing."""
    with pytest.raises(RepositoryNotNeeded):
        open_source(shared_fixtures / "kit-v1.7.0", repository="localhost/x")


@pytest.mark.parametrize("ending", [".tar", ".oci.tar"])
def test_an_archive_is_named_by_its_file(layout, tmp_path, ending):
    """Bare tags of an archive belong to the file's name without its endings."""
    layout.kit("v1", [])
    assert names(archive(layout.path, tmp_path / f"packed{ending}")) == ["packed:v1"]


@pytest.mark.parametrize("form", ["gnu", "ustar", "pax", "v7"])
def test_an_archive_imports_as_its_folder(bring, store, shared_fixtures, tmp_path, form):
    """A layout packed by GNU tar in any format comes in with the same ModelKitIDs, and extracts nothing."""
    path = archive(shared_fixtures / "modctl/layout", tmp_path / "mp.tar", f"--format={form}")
    before = sorted(tmp_path.iterdir())
    report = bring(path)
    assert sorted(tmp_path.iterdir()) == before
    listed = json.loads((shared_fixtures / "modctl/layout/index.json").read_text())["manifests"]
    assert [str(digest) for _, _, digest in report.tags] == [entry["digest"] for entry in listed]
    assert report.counts.linked == 0


def test_the_blobs_of_an_archive_are_not_read_to_find_them(tmp_path, layout):
    """An archive with a hole of 64 GiB is scanned at once: what lies in members costs nothing."""
    layout.kit("v1", [])
    path = archive(layout.path, tmp_path / "big.tar")
    with path.open("r+b") as file, tarfile.open(path) as read:
        end = max(member.offset_data + (member.size + 511 & ~511) for member in read.getmembers())
        file.truncate(end)
        file.seek(end)
        info = tarfile.TarInfo("hole")
        info.size = 64 << 30
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(end + 512 + info.size + 1024)
    assert names(path) == ["big:v1"]


def test_an_archive_cut_short_is_refused(layout, tmp_path):
    """An archive that ends before its last member is a named error, whatever was cut."""
    layout.kit("v1", [("application/vnd.kitops.modelkit.model.v1.raw", bytes(range(256)) * 100)])
    path = archive(layout.path, tmp_path / "cut.tar")
    size = path.stat().st_size
    for keep in (513, size // 2, 700):
        os.truncate(path, keep)
        with pytest.raises(MalformedError):
            names(path)


def test_an_archive_with_links_is_refused(layout, tmp_path):
    """A layout archive may hold files and folders only."""
    layout.kit("v1", [])
    (layout.path / "link").symlink_to("/etc/passwd")
    with pytest.raises(TarMalformed):
        names(archive(layout.path, tmp_path / "links.tar"))


@pytest.mark.parametrize("options", [["-z"], ["--zstd"], ["-J"]])
def test_a_compressed_archive_is_refused_with_its_name(layout, tmp_path, options):
    """A compressed archive is refused, and the message says what compressed it."""
    layout.kit("v1", [])
    with pytest.raises(SourceNotRecognised) as caught:
        open_source(archive(layout.path, tmp_path / "small.tar", *options))
    assert "compressed with" in str(caught.value)


@pytest.mark.parametrize(
    "text", ['{"imageLayoutVersion":"2.0.0"}', '{"imageLayoutVersion":1}', "{}", "[]", "nonsense", "", "{" * 5000]
)
def test_another_layout_version_is_refused(layout, text):
    """An oci-layout file that does not say 1.0.0 is a named error."""
    layout.kit("v1", [])
    (layout.path / "oci-layout").write_text(text)
    with pytest.raises(SourceMalformed):
        names(layout.path)


@pytest.mark.parametrize("text", ["", "[]", '{"manifests":[]}', '{"schemaVersion":2,"manifests":[7]}', "{" * 5000,
                                  '{"schemaVersion":2,"manifests":[],"manifests":[]}'])  # fmt: skip
def test_a_malformed_index_names_its_file(layout, text):
    """An index.json that breaks its format is a named error with the file's path."""
    (layout.path / "index.json").write_text(text)
    with pytest.raises(SourceMalformed) as caught:
        names(layout.path)
    assert "index.json" in str(caught.value)


def test_a_layout_without_an_index_is_refused(layout):
    """oci-layout alone is no layout."""
    with pytest.raises(SourceMalformed):
        names(layout.path)


def test_an_index_above_the_limit_is_refused(layout):
    """An index.json above 4 MiB is not read."""
    (layout.path / "index.json").write_text(" " * (5 << 20))
    with pytest.raises(SourceMalformed):
        names(layout.path)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_files_of_a_layout_are_files(layout, tmp_path, name, kind):
    """A link or a pipe in place of a layout's file is refused, without following it or waiting."""
    layout.kit("v1", [])
    (layout.path / name).rename(tmp_path / "outside")
    if kind == "link":
        (layout.path / name).symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(layout.path / name)
    with pytest.raises(SourceMalformed):
        names(layout.path)


def test_what_is_no_source(tmp_path):
    """Nothing, an empty folder, a device, and files that are no archive are refused by name."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(SourceNotFound):
        open_source(tmp_path / "absent")
    for path in (tmp_path / "empty", tmp_path / "short", Path("/dev/null")):
        with pytest.raises(SourceNotRecognised):
            open_source(path)
    (tmp_path / "text").write_bytes(b"not a tar " * 100)
    with pytest.raises(MalformedError):
        names(tmp_path / "text")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"3.1.4":7}', '{"3.1.4":{"digest":"sha256:00"}}', '{"a":{},"a":{}}', '{"3.1.4":{"mediaTy']
)
def test_half_written_tags_name_their_file(copy_home, kit_file, text):
    """kit rewrites its tags in place: half a file is a named error with its path."""
    home = copy_home("kit-v1.7.0")
    kit_file(home, "localhost/myllm", "tags").write_text(text)
    with pytest.raises(SourceMalformed) as caught:
        names(home)
    assert "-tags.json" in str(caught.value)


@pytest.mark.parametrize(
    "repository", ["../../etc", "localhost/../x", "UPPER/x", "a//b", "localhost/", "\0", "x" * 300]
)
def test_hostile_repositories_of_kit_are_passed_over(copy_home, repository):
    """A file name that decodes to something else than a repository is passed over with a warning."""
    home = copy_home("kit-v0.4.0")
    name = base64.urlsafe_b64encode(repository.encode()).decode()[:240]
    (home / "storage" / f"{name}-index.json").write_text('{"schemaVersion":2,"manifests":[]}')
    source = open_source(home)
    assert [entry.display for entry in source.iter_entries()] == ["myllm:3.1.4"]
    assert len(source.warnings) == 1
    source.close()


def test_hostile_tags_of_kit_are_passed_over(copy_home, kit_file):
    """A tag that the grammar refuses is passed over with a warning."""
    home = copy_home("kit-v0.4.0")
    path = kit_file(home, "localhost/myllm", "tags")
    tags = json.loads(path.read_text())
    path.write_text(json.dumps({**tags, "../x": tags["3.1.4"], ".dot": tags["3.1.4"]}))
    source = open_source(home)
    assert [entry.display for entry in source.iter_entries()] == ["myllm:3.1.4"]
    assert len(source.warnings) == 2
    source.close()


@pytest.mark.parametrize("name", ["bG9jYWxob3N0L18", "bG9jYWxob3N0L19=", "====", "_w=="])
def test_names_that_kit_would_not_write(name):
    """Only kit's own encoding of a name counts, so two files never stand for one repository."""
    with pytest.raises((ValueError, KitfsError)):
        decode_repository(name)


def test_storage_below_a_link_is_read_but_links_in_it_are_not_followed(copy_home, tmp_path):
    """The folder that was named may be a link; a repository folder in it may not."""
    home = copy_home("kit-v0.2.3")
    (tmp_path / "link").symlink_to(home)
    assert names(tmp_path / "link") == ["myllm:3.1.4"]
    (home / "storage/localhost/myllm").rename(tmp_path / "outside")
    (home / "storage/localhost/myllm").symlink_to(tmp_path / "outside")
    assert names(home) == []


def test_kinds(layout, tmp_path, shared_fixtures):
    """Folder, archive and storage are told apart by what lies in them."""
    layout.kit("v1", [])
    assert isinstance(open_source(layout.path), LayoutFolder)
    assert isinstance(open_source(archive(layout.path, tmp_path / "a.tar")), LayoutArchive)
    assert isinstance(open_source(shared_fixtures / "kit-v0.4.0"), KitStorage)


def test_an_archive_that_becomes_shorter_ends_the_scan():
    """A file that gives fewer bytes than its size said is refused; the scan does not wait for the rest."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # says 4096 bytes and has some 30
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with path.open("rb") as file, pytest.raises(SourceMalformed, match="while it was read"):
        scan_archive(file.fileno(), path)
