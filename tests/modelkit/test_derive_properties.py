"""Random trees, random changes: a child holds what the changed tree holds, and keeps each layer without a change."""

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.archive.tar_toc import MemberKind
from kitfs.archive.tar_write import END_OF_ARCHIVE, encode_member_header
from kitfs.digest import Digest
from kitfs.layer.compress import PackCompression
from kitfs.modelkit.derive import Derived, DeriveOptions, derive
from kitfs.modelkit.derive_plan import LayerState
from kitfs.modelkit.pack import pack
from kitfs.modelkit.pack_options import PackOptions
from kitfs.modelkit.resolve import ResolvedTree, resolve
from kitfs.modelkit.staging import create_staging
from kitfs.modelkit.unpack import unpack
from kitfs.oci.kitfile import iter_artifacts
from kitfs.oci.reference import parse_reference
from kitfs.store.records import KIND_FILE
from kitfs.store.store import Store
from kitfs.transfer.detect import open_source
from kitfs.transfer.importer import import_source

CREATED_S = 1_700_000_000
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""In memory: a case writes some 30 files durably, 5 ms each on a disk."""


@dataclass(frozen=True)
class Item:
    """A file, or a directory where ``data`` is None, with the mode that its owner sees."""

    mode: int
    data: bytes | None = None

    def __repr__(self) -> str:
        return f"{self.mode:o} {'/' if self.data is None else f'{len(self.data)} bytes {self.data[:4]!r}'}"


Items = dict[bytes, Item]

NAMES = st.sampled_from([b"a", b"b", b"b-c", b"c.d", "\u00e9".encode(), b"\xff", b" x"])
DATA = st.sampled_from([b"", b"1", b"2", b"12", bytes(700), bytes(range(256)) * 300, bytes(200_000)])
FILE_MODES = st.sampled_from([0o644, 0o644, 0o755, 0o600, 0o400, 0o4755])
DIRECTORY_MODES = st.sampled_from([0o755, 0o755, 0o700, 0o1777])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)


def above(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


def is_within(path: bytes, outer: bytes) -> bool:
    return outer == b"." or path == outer or path.startswith(outer + b"/")


def put(items: Items, path: bytes, item: Item) -> None:
    """Put something at a path, in place of whatever was there, with directories above it."""
    for folder in above(path):
        if items.get(folder, item).data is not None or folder not in items:
            items[folder] = Item(0o755)
    if item.data is not None or (path in items and items[path].data is not None):
        remove(items, path)
    items[path] = item


def remove(items: Items, path: bytes) -> None:
    for other in [other for other in items if is_within(other, path)]:
        del items[other]


def seen_mode(item: Item) -> int:
    """What a writable mount shows."""
    return 0o755 if item.data is None or item.mode & 0o111 else 0o644


@st.composite
def changed(draw: st.DrawFn, before: Items) -> tuple[Items, set[bytes]]:
    """A tree after some changes, and what was touched beside."""
    items, touched = dict(before), set[bytes]()
    for _ in range(draw(st.integers(0, 4))):
        known = sorted(items)
        action = draw(st.sampled_from(["put", "write", "mode", "remove", "move", "touch", "make"]))
        path = draw(st.sampled_from(known)) if known and action not in ("put", "make") else draw(PATHS)
        item = items.get(path)
        if action == "put":
            put(items, path, Item(draw(FILE_MODES), draw(DATA)))
        elif action == "make":
            put(items, path, Item(draw(DIRECTORY_MODES)))
        elif item is None:
            continue
        elif action == "write" and item.data is not None:
            items[path] = replace(item, data=draw(DATA))
        elif action == "mode":
            items[path] = replace(item, mode=draw(DIRECTORY_MODES if item.data is None else FILE_MODES))
        elif action == "touch":
            touched.add(path)
        elif action == "remove":
            remove(items, path)
        elif action == "move":
            target = draw(PATHS)
            if not is_within(target, path) and not is_within(path, target):
                moved = {target + other[len(path) :]: one for other, one in items.items() if is_within(other, path)}
                remove(items, path)
                for other in sorted(moved):
                    put(items, other, moved[other])
    return items, touched


def draw_entries(draw: st.DrawFn, items: Items) -> list[bytes]:
    """Paths of entries of a Kitfile."""
    usable = [b".", *(path for path in sorted(items) if not _is_odd(path))]
    return draw(st.lists(st.sampled_from(usable), min_size=1, max_size=4, unique=True))


def _is_odd(path: bytes) -> bool:
    """Whether a Kitfile can not name it."""
    try:
        return path.decode() != path.decode().strip()
    except UnicodeDecodeError:
        return True


def kitfile_of(entries: list[bytes], note: str = "") -> bytes:
    kinds = ["code", "datasets", "docs"]
    lines = ["manifestVersion: 1.0.0", f"package: {{name: t, description: '{note}'}}"]
    for kind in kinds:
        paths = [path for number, path in enumerate(sorted(entries)) if kinds[number % 3] == kind]
        lines += [f"{kind}:"] if paths else []
        lines += [f"  - path: '{path.decode()}'" for path in paths]
    return "\n".join([*lines, ""]).encode()


def kept(items: Items, entries: list[bytes]) -> Items:
    """What of a tree is under entries, with the directories that lead there."""
    leading = {folder for entry in entries for folder in above(entry)}
    return {
        path: item
        for path, item in items.items()
        if path in leading or any(is_within(path, entry) for entry in entries)
    }


def write_tree(folder: Path, items: Items) -> None:
    """Write a tree with its modes."""
    folder.mkdir(parents=True, exist_ok=True)
    root = os.fsencode(folder)
    for path in sorted(items):
        target = os.path.join(root, path)
        data = items[path].data
        if data is None:
            os.mkdir(target)
        else:
            with open(target, "wb") as file:
                file.write(data)
    for path in sorted(items, reverse=True):
        os.chmod(os.path.join(root, path), items[path].mode)


def read_tree(folder: Path) -> Items:
    items: Items = {}
    root = os.fsencode(folder)
    for place, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(place, name)
            status = os.lstat(path)
            assert not stat.S_ISLNK(status.st_mode)
            data = None if name in folders else Path(os.fsdecode(path)).read_bytes()
            items[os.path.relpath(path, root)] = Item(stat.S_IMODE(status.st_mode), data)
    return items


def write_upper(upper: Path, before: Items, after: Items, touched: set[bytes], opaque: set[bytes]) -> None:
    """What fuse-overlayfs leaves behind; ``before`` and ``after`` as it shows them."""
    there = {path for path in after if before.get(path) != after[path] or path in touched}
    there |= {path for path in after for folder in above(path) if folder in opaque}
    hidden = {path for path in before if path not in after and not any(folder in opaque for folder in above(path))}
    hidden = {path for path in hidden if not any(folder not in after or after[folder].data is not None
                                                 for folder in above(path))}  # fmt: skip
    needed = {folder for path in there | hidden | opaque for folder in above(path)} | there | opaque
    write_tree(upper, {path: after[path] for path in needed})
    for path in hidden:
        folder, _, name = path.rpartition(b"/")
        Path(os.fsdecode(os.path.join(os.fsencode(upper), folder, b".wh." + name))).touch()
    for path in opaque:
        Path(os.fsdecode(os.path.join(os.fsencode(upper), path, b".wh..wh..opq"))).touch()


@dataclass
class Case:
    """A store, a parent in it, and a place to work in."""

    store: Store
    folder: Path
    parent: ResolvedTree
    shown: Items
    entries: list[bytes]
    is_legacy: bool

    def is_shown(self, found: Items, items: Items, entries: list[bytes]) -> bool:
        """Whether a tree is what a ModelKit shows.

        Before kit 0.5 no layer has the directories above its path, and the first that needs one makes it.
        """
        wanted = kept(items, entries)
        if self.is_legacy:
            found, wanted = ({path: item if item.data is not None else Item(0o755) for path, item in tree.items()}
                             for tree in (found, wanted))  # fmt: skip
        return found == wanted

    def oracle(self, name: str, items: Items, entries: list[bytes]) -> list[tuple[str, str]]:
        """Kind and path of each layer that pack makes of a tree, with the digest of its uncompressed bytes."""
        folder, reference = self.folder / name, parse_reference(f"oracle:{name}")
        write_tree(folder, items)
        (folder / "Kitfile").write_bytes(kitfile_of(entries))
        pack(self.store, folder, None, [reference], created_s=CREATED_S)
        kitfile = resolve(self.store, reference).kits[0].kitfile
        assert kitfile is not None
        return [(f"{one.kind} {one.path}", str(one.diff_id)) for one in iter_artifacts(kitfile)]

    def unpacked(self, tag: str) -> Items:
        target = self.folder / f"unpacked-{tag}"
        unpack(self.store, parse_reference(f"kit:{tag}"), target)
        found = read_tree(target)
        del found[b"Kitfile"]
        return found

    def stage(
        self, before: Items, after: Items, touched: set[bytes], opaque: set[bytes], kitfile: bytes | None
    ) -> Path:
        seen = {path: replace(item, mode=seen_mode(item)) for path, item in before.items()}
        staging = create_staging(
            self.store, self.folder / "staging", self.parent, overlay="fuse-overlayfs", uid=os.geteuid(), gid=0
        )
        write_upper(staging.upper, seen, after, touched & set(after), opaque)
        if kitfile is not None:
            (staging.upper / "Kitfile").write_bytes(kitfile)
        return staging.path


def commit(case: Case, path: Path, *, parent: ResolvedTree | None = None) -> Derived:
    options = DeriveOptions(created_s=CREATED_S, ignores_untracked=True)
    return derive(case.store, path, parse_reference("kit:2"), parent=parent, options=options)


def expected_modes(before: Items, after: Items, opaque: set[bytes]) -> Items:
    """A tree whose modes are as seen, with those that a child records; what is in an opaque directory was made anew."""
    found = {}
    for path, item in after.items():
        old = before.get(path) if not any(folder in opaque for folder in above(path)) else None
        is_same = old is not None and (old.data is None) == (item.data is None) and seen_mode(old) == item.mode
        found[path] = replace(item, mode=old.mode) if is_same and old is not None else item
    return found


def check_child(case: Case, derived: Derived, after: Items, entries: list[bytes]) -> None:
    """The child holds the tree; layers that pack makes alike of both trees are the parent's, and no others are."""
    child = resolve(case.store, parse_reference("kit:2")) if derived.is_new else case.parent
    assert case.is_shown(case.unpacked("2") if derived.is_new else case.shown, after, entries)
    before = dict(case.oracle("before", case.shown, case.entries))
    wanted = case.oracle("after", kept(after, entries), entries)
    if not derived.is_new:
        assert [name for name, _ in wanted] == list(before)
    parents = {one.digest: one for one in case.parent.kits[0].manifest.layers}
    states = {f"{one.artifact.kind} {one.artifact.path}": one.state for one in derived.layers}
    for (name, diff_id), descriptor in zip(wanted, child.kits[0].manifest.layers, strict=True):
        is_kept = states[name] is LayerState.UNCHANGED
        assert is_kept or before.get(name) != diff_id, name
        if is_kept:
            assert parents[descriptor.digest] == descriptor
            # A directory without files that an entry takes from a layer may stay in that too: the tree is the same.
            assert files_of(case.store, before[name]) == files_of(case.store, diff_id)


def files_of(store: Store, layer: str) -> set[tuple[bytes, int, bytes | None]]:
    found = next(digest for digest, record in store.iter_layers() if str(record.diff_id) == layer)
    return {(one.path, one.mode, one.digest) for one in store.get_toc(found) if one.kind == KIND_FILE}


@pytest.fixture(autouse=True)
def _no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def draw_items(draw: st.DrawFn) -> Items:
    items: Items = {}
    for path in draw(st.lists(PATHS, min_size=1, max_size=8)):
        is_file = draw(st.integers(0, 3))
        put(items, path, Item(draw(FILE_MODES), draw(DATA)) if is_file else Item(draw(DIRECTORY_MODES)))
    return items


LEGACY = "legacy"
FORMS = {
    "tar": PackOptions(),
    "gzip": PackOptions(PackCompression.GZIP),
    "zstd": PackOptions(PackCompression.ZSTD),
    "ModelPack": PackOptions(model_pack=True),
}


def make_parent(store: Store, folder: Path, items: Items, entries: list[bytes], form: str, seed: Path) -> ResolvedTree:
    """A ModelKit of a tree, ``kit:1``; one before kit 0.5 is made as a child of such a one."""
    context, reference = folder / "context", parse_reference("kit:1")
    write_tree(context, items)
    (context / "Kitfile").write_bytes(kitfile_of(entries))
    if form == LEGACY:
        source = open_source(seed)
        import_source(store, source, copy=True)
        source.close()
        parent = resolve(store, parse_reference("seed:1"))
        options = DeriveOptions(created_s=CREATED_S, ignores_untracked=True)
        derive(store, context, reference, parent=parent, options=options)
    else:
        pack(store, context, None, [reference], options=FORMS[form], created_s=CREATED_S)
    return resolve(store, reference)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout ``seed:1`` of a ModelKit without digests in its config: one before kit 0.5."""
    folder = tmp_path_factory.mktemp("seed")
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(data)
        (blobs / digest.hex).write_bytes(data)
        return {"mediaType": f"application/{media_type}", "digest": str(digest), "size": len(data)}

    data = b"".join(iter_seed())
    config = put(b'{"manifestVersion":"1.0.0","docs":[{"path":"seed"}]}', "vnd.kitops.modelkit.config.v1+json")
    layer = put(data, "vnd.kitops.modelkit.docs.v1.tar")
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
    entry = put(manifest, "vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "seed:1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return folder


def iter_seed() -> Iterator[bytes]:
    yield encode_member_header(b"seed", kind=MemberKind.FILE, size=0, mode=0o644)
    yield END_OF_ARCHIVE


@pytest.mark.parametrize("is_staged", [True, False], ids=["staged", "folder"])
@settings(max_examples=40)
@given(st.data())
def test_child_is_the_changed_tree(seed: Path, is_staged: bool, data: st.DataObject):
    """A staging directory, or a folder, over any form of parent, gives what pack makes of its tree."""
    draw = data.draw
    items = draw(st.composite(draw_items)())
    entries = draw(st.composite(draw_entries)(items))
    form = draw(st.sampled_from(["tar", "tar", "gzip", "zstd", "ModelPack", LEGACY]))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name, Store.open(Path(name, "home")) as store:
        folder = Path(name)
        parent = make_parent(store, folder, items, entries, form, seed)
        case = Case(store, folder, parent, {}, entries, form == LEGACY)
        before = case.shown = kept(items, entries)
        assert case.is_shown(case.unpacked("1"), items, entries)
        start = {path: replace(item, mode=seen_mode(item)) for path, item in before.items()} if is_staged else before
        after, touched = draw(changed(start))
        usable = [path for path in entries if path == b"." or path in after]
        edits = usable != entries or draw(st.booleans())
        wanted = draw(st.composite(draw_entries)(after)) if edits else entries
        if is_staged:
            both = sorted(path for path, item in after.items() if item.data is None and path in before)
            opaque = draw(st.sets(st.sampled_from(both), max_size=1)) if both else set[bytes]()
            path = case.stage(before, after, touched, opaque, kitfile_of(wanted) if edits else None)
            check_child(case, commit(case, path), expected_modes(before, after, opaque), wanted)
        else:
            path = folder / "work"
            write_tree(path, after)
            (path / "Kitfile").write_bytes(kitfile_of(wanted))
            check_child(case, commit(case, path, parent=case.parent), after, wanted)
