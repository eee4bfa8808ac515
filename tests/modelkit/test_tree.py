"""The tree that a ModelKit shows, without a mount."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.digest import Digest
from kitfs.modelkit.resolve import (
    ModelKitMalformed,
    PathEscapes,
    ResolvedTree,
    clean_path,
    parse_kit,
)
from kitfs.modelkit.storeview import build_directories
from kitfs.modelkit.tree import Modes, NodeKind, NodeNotFound, TreeConflict, build_tree, shown_mode
from kitfs.store.outline import Outline
from kitfs.store.records import TocMember

CONFIG = "application/vnd.kitops.modelkit.config.v1+json"
LAYER = "application/vnd.kitops.modelkit.{}.v1.tar"
RAW = "application/vnd.cncf.model.weight.v1.raw"


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def directory(path: str, mode: int = 0o755) -> TocMember:
    return TocMember(path.encode(), 1, mode, 0, 0, None)


def file(path: str, size: int = 3, mode: int = 0o644) -> TocMember:
    return TocMember(path.encode(), 0, mode, size, 512, digest(path).raw)


def kit_of(kitfile: dict, layers: list[tuple[str, str]], *, digests: bool = True, modelpack: bool = False):
    """A kit from its Kitfile and (kind, layer name) pairs; ``digests`` is today's era."""
    config = json.dumps({"manifestVersion": "1.0.0", "package": {}, **kitfile}).encode()
    described = [{"mediaType": LAYER.format(kind), "digest": str(digest(name)), "size": 10} for kind, name in layers]
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": described,
    }
    return parse_kit(json.dumps(manifest).encode(), config)


def entry(path: str, name: str, **more: object) -> dict:
    """A Kitfile entry of today's era."""
    return {"path": path, "digest": str(digest(name)), "diffId": str(digest(name)), **more}


def tree_of(kits: list, tocs: dict[str, list[TocMember]], **options: bool):
    by_digest = {digest(name): Outline.of(toc) for name, toc in tocs.items()}
    return build_tree(ResolvedTree("myllm:1", tuple(kits)), by_digest.__getitem__, **options)


def paths(tree) -> dict[bytes, NodeKind]:
    return {path: node.kind for path, node in tree.iter_paths() if not path.startswith(b".kitfs")}


def test_layers_of_a_kit_are_one_tree():
    """Directories that several layers hold are one; files lie at their paths; Kitfile is at the root."""
    kit = kit_of({"model": entry("model", "m"), "datasets": [entry("data/a", "d")]}, [("model", "m"), ("dataset", "d")])
    tree = tree_of(
        [kit],
        {
            "m": [directory("model"), file("model/w.bin", 5)],
            "d": [directory("data"), directory("data/a"), file("data/a/x")],
        },
    )
    assert paths(tree) == {
        b"Kitfile": NodeKind.FILE,
        b"model": NodeKind.DIRECTORY,
        b"model/w.bin": NodeKind.FILE,
        b"data": NodeKind.DIRECTORY,
        b"data/a": NodeKind.DIRECTORY,
        b"data/a/x": NodeKind.FILE,
    }
    assert tree.get_path(b"model/w.bin").size == 5
    assert [node.number for _, node in tree.iter_paths()] == list(range(1, len(tree)))


def test_names_of_legacy_layers_are_relative_to_the_parent_of_their_path():
    """Without digests in the config, layers of a kind follow the Kitfile's order and lie below its folders."""
    kit = kit_of(
        {"model": {"path": "./deep/model"}, "datasets": [{"path": "data/x.csv"}, {"path": "data/y"}]},
        [("dataset", "x"), ("dataset", "y"), ("model", "m")],
        digests=False,
    )
    tree = tree_of(
        [kit],
        {"x": [file("x.csv")], "y": [directory("y"), file("y/1")], "m": [directory("model"), file("model/w")]},
    )
    assert {b"data/x.csv", b"data/y/1", b"deep/model/w"} <= paths(tree).keys()


@pytest.mark.parametrize(
    ("path", "toc", "target"),
    [
        ("weights", [directory("weights"), file("weights/w")], b"weights"),
        ("a/b.bin", [directory("a"), file("a/b.bin")], b"a/b.bin"),
        (".", [file("w.bin")], b"."),
    ],
)
def test_a_link_named_model_points_at_the_model(path, toc, target):
    """Where nothing is called model, a relative link leads to the model's path."""
    tree = tree_of([kit_of({"model": entry(path, "m")}, [("model", "m")])], {"m": toc})
    link = tree.get_path(b"model")
    assert link.kind is NodeKind.SYMLINK
    assert link.content.data == target


def test_an_entry_named_model_is_left_alone():
    """A kit's own ``model``, whatever it is, keeps the name."""
    kit = kit_of({"model": entry("weights", "m"), "code": [entry("model", "c")]}, [("model", "m"), ("code", "c")])
    tree = tree_of([kit], {"m": [directory("weights"), file("weights/w")], "c": [file("model")]})
    assert tree.get_path(b"model").kind is NodeKind.FILE


def test_a_child_shows_its_parents_model_and_parts_only():
    """Of a parent the model and its parts are shown, neither its Kitfile nor its code."""
    child = kit_of({"model": {"path": "myllm:1"}, "docs": [entry("docs", "k")]}, [("docs", "k")])
    parent = kit_of(
        {"model": entry("model", "m", parts=[entry("lora", "p")]), "code": [entry("src", "c")]},
        [("model", "m"), ("modelpart", "p"), ("code", "c")],
    )
    tree = tree_of(
        [child, parent],
        {
            "k": [directory("docs"), file("docs/card")],
            "m": [directory("model"), file("model/w")],
            "p": [directory("lora"), file("lora/l")],
            "c": [directory("src"), file("src/x")],
        },
    )
    assert {b"docs/card", b"model/w", b"lora/l"} <= paths(tree).keys()
    assert b"src/x" not in paths(tree)


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ([file("a")], [file("a")], b"a"),
        ([file("a")], [directory("a")], b"a"),
        ([file("a")], [file("a/b")], b"a/b"),
        ([file("x")], [file("Kitfile")], b"Kitfile"),
        ([file("x")], [directory(".kitfs"), file(".kitfs/id")], b".kitfs"),
        ([file("x")], [file(".kitfs/deep/er")], b".kitfs/deep/er"),
    ],
)
@pytest.mark.parametrize("meta", [True, False])
def test_layers_that_claim_one_path_are_refused(first, second, conflict, meta):
    """A path occurs once in a tree, and reserved names are kitfs's."""
    kit = kit_of({"model": entry("a", "1"), "code": [entry("b", "2")]}, [("model", "1"), ("code", "2")])
    with pytest.raises(TreeConflict) as caught:
        tree_of([kit], {"1": first, "2": second}, meta=meta)
    assert caught.value.path == conflict


def test_a_parents_file_may_not_be_claimed_by_the_child():
    """Parents included, a file path occurs once."""
    child = kit_of({"model": {"path": "myllm:1"}, "docs": [entry("model/w", "k")]}, [("docs", "k")])
    parent = kit_of({"model": entry("model", "m")}, [("model", "m")])
    with pytest.raises(TreeConflict):
        tree_of(
            [child, parent],
            {"k": [directory("model"), file("model/w")], "m": [directory("model"), file("model/w")]},
        )


def test_one_blob_listed_twice_is_shown_once():
    """Two descriptors may name one tar; its names are there once."""
    kit = kit_of({"model": entry("a", "m"), "datasets": [entry("a", "m")]}, [("model", "m"), ("dataset", "m")])
    assert b"a/x" in paths(tree_of([kit], {"m": [directory("a"), file("a/x")]}))


def test_config_naming_an_absent_layer_is_refused():
    """A config that names a layer which its manifest does not list is malformed."""
    with pytest.raises(ModelKitMalformed, match="its manifest does not"):
        kit_of({"model": entry("a", "gone")}, [("model", "other")])


def test_raw_layers_of_a_modelpack_lie_at_their_annotated_paths():
    """A raw layer's path and mode come from annotations; several weights at the root make ``model`` the root."""
    layers = [
        {
            "mediaType": RAW,
            "digest": str(digest(name)),
            "size": 3,
            "annotations": {
                "org.cncf.model.filepath": name,
                "org.cncf.model.file.metadata+json": json.dumps({"name": name, "mode": 0o755}),
            },
        }
        for name in ("one.bin", "two.bin")
    ]
    config = b'{"descriptor":{},"modelfs":{"type":"layers","diffIds":[]},"config":{}}'
    manifest = {
        "schemaVersion": 2,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": str(Digest.of(config)),
            "size": len(config),
        },
        "layers": layers,
    }
    kit = parse_kit(json.dumps(manifest).encode(), config)
    tree = tree_of([kit], {name: [TocMember(b"", 0, 0, 3, 0, digest(name).raw)] for name in ("one.bin", "two.bin")})
    assert kit.kitfile is None
    assert paths(tree) == {b"one.bin": NodeKind.FILE, b"two.bin": NodeKind.FILE, b"model": NodeKind.SYMLINK}
    assert tree.get_path(b"one.bin").mode == 0o755
    assert tree.get_path(b"model").content.data == b"."


@pytest.mark.parametrize(
    ("recorded", "served", "tar"),
    [(0o600, 0o444, 0o600), (0o755, 0o555, 0o755), (0o6777, 0o555, 0o777), (0o001, 0o555, 0o001)],
)
def test_modes(recorded, served, tar):
    """Served modes can be read by everyone and carry x where any was; setuid, setgid and sticky never show."""
    kit = kit_of({"model": entry("w", "m")}, [("model", "m")])
    node = tree_of([kit], {"m": [file("w", mode=recorded)]}).get_path(b"w")
    assert (shown_mode(node, Modes.KIT), shown_mode(node, Modes.TAR)) == (served, tar)


def test_iteration_goes_on_after_a_cookie():
    """A directory read in two parts gives every entry once, in ascending order."""
    kit = kit_of({"model": entry("m", "m")}, [("model", "m")])
    tree = tree_of([kit], {"m": [directory("m"), *[file(f"m/{number}") for number in range(10)]]})
    number = tree.get_path(b"m").number
    whole = [node.number for node in tree.iter_children(number)]
    assert whole == sorted(whole) and len(whole) == 10
    assert [node.number for node in tree.iter_children(number, whole[3])] == whole[4:]
    with pytest.raises(NodeNotFound):
        tree.get_child(number, b"10")


SMALL_PATHS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


@st.composite
def small_tocs(draw) -> list[TocMember]:
    """Members of a layer that fit together."""
    kinds: dict[str, int] = {}
    toc = []
    for path in draw(st.lists(SMALL_PATHS, max_size=6, unique=True)):
        kind = draw(st.sampled_from([0, 1]))
        above = [path[:at] for at, char in enumerate(path) if char == "/"]
        if path in kinds or any(kinds.get(folder) == 0 for folder in above):
            continue
        kinds.update(dict.fromkeys(above, 1) | {path: kind})
        toc.append(directory(path, 0o700) if kind else file(path, len(path)))
    return toc


def add_one_by_one(tocs: list[list[TocMember]]) -> dict[bytes, tuple[NodeKind, int]] | None:
    """Kinds and sizes of a tree's paths, found without outlines; None where two layers can not be shown together."""
    known: dict[bytes, tuple[NodeKind, int]] = {b"Kitfile": (NodeKind.FILE, 0)}
    for toc in tocs:
        for member in toc:
            above = [member.path[:at] for at, char in enumerate(member.path) if char == ord("/")]
            for folder in above:
                if known.setdefault(folder, (NodeKind.DIRECTORY, 0))[0] is NodeKind.FILE:
                    return None
            kind = NodeKind.DIRECTORY if member.kind else NodeKind.FILE
            if member.path in known and (kind, known[member.path][0]) != (NodeKind.DIRECTORY,) * 2:
                return None
            known.setdefault(member.path, (kind, member.size))
    return known


@given(st.lists(small_tocs(), min_size=1, max_size=4))
def test_a_tree_is_what_adding_one_path_after_another_gives(tocs):
    """Directories of several layers are one, a path that is a file anywhere is refused; numbers lead back."""
    names = [str(number) for number in range(len(tocs))]
    kit = kit_of({"code": [entry(f"code{name}", name) for name in names]}, [("code", name) for name in names])
    expected = add_one_by_one(tocs)
    by_name = dict(zip(names, tocs, strict=True))
    if expected is None:
        with pytest.raises(TreeConflict):
            tree_of([kit], by_name)
        return
    tree = tree_of([kit], by_name, meta=False)
    found = dict(tree.iter_paths())
    sizes = {path: (node.kind, node.size if path != b"Kitfile" else 0) for path, node in found.items()}
    assert sizes == expected
    assert len(tree) == len(found) + 1
    assert tree.size == sum(node.size for node in found.values())
    for path, node in found.items():
        assert tree.get_path(path) == tree.get_node(node.number) == node
        assert tree.get_child(node.parent, node.name) == node
    for number in [0, *(node.number for node in found.values() if node.kind is NodeKind.DIRECTORY)]:
        listed = [child.number for child in tree.iter_children(number)]
        assert listed == sorted(node.number for node in found.values() if node.parent == number)
        for place, after in enumerate(listed):
            assert [child.number for child in tree.iter_children(number, after)] == listed[place + 1 :]


@pytest.mark.parametrize(("first", "second"), [(1, 100), (100, 1), (100, 100)])
def test_a_name_in_two_large_layers_is_refused(first, second):
    """However many names the two have in the directory they share."""
    kit = kit_of({"code": [entry("a", "1"), entry("b", "2")]}, [("code", "1"), ("code", "2")])
    one = [file(f"d/{number}") for number in range(first)]
    two = [file(f"d/x{number}") for number in range(second)]
    assert len(tree_of([kit], {"1": one, "2": two}, meta=False)) == first + second + 3
    with pytest.raises(TreeConflict) as caught:
        tree_of([kit], {"1": one, "2": [*two, file("d/0")]})
    assert caught.value.path == b"d/0"


@pytest.mark.parametrize("path", ["/abs", "..", "../x", "a/../../x", "a\0b"])
def test_paths_that_lead_out_are_refused(path):
    """A Kitfile path stays inside the ModelKit."""
    with pytest.raises(PathEscapes):
        clean_path(path)


def test_directories_above_tags():
    """Components are folders, localhost is not shown, a tag beside a component of its name gets a colon."""
    one = digest("one")
    directories = build_directories(
        iter(
            [
                ("localhost/myllm", "1", one),
                ("localhost/myllm", "deeper", one),
                ("localhost/myllm/deeper", "2", one),
                ("registry.example.com:8080/acme/x", "3", one),
            ]
        )
    )
    assert sorted(directories) == [
        "",
        "myllm",
        "myllm/deeper",
        "registry.example.com:8080",
        "registry.example.com:8080/acme",
        "registry.example.com:8080/acme/x",
    ]
    assert sorted(directories["myllm"].entries) == ["1", ":deeper", "deeper"]
    assert directories["myllm"].entries["deeper"] == "myllm/deeper"
