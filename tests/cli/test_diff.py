"""``kitfs diff``: kit's text and keys, and the files that differ."""

COMPARED = """\
Comparing:
  ModelKit1: localhost/myllm:3.1.4
  ModelKit2: registry.example.com:8080/acme/team_a/tuned:1

Configurations:
---------------------------------------
Configs differ:
  ModelKit1 Config Digest: sha256:cd999e81db
  ModelKit2 Config Digest: sha256:acd1a99763

Annotations:
---------------------------------------
  Annotations are identical\x20

Shared Layers
---------------------------------------
Type    | Digest             | Size
Docs    | sha256:b1a8a44b4f  | 2.0 KiB

Unique Layers to ModelKit1 (localhost/myllm:3.1.4)
---------------------------------------
Type    | Digest             | Size
Code    | sha256:04bf6d7de7  | 5.5 KiB
Dataset | sha256:8dd0c10578  | 251.5 KiB
Dataset | sha256:5bf2684fd2  | 7.5 KiB
Docs    | sha256:92daaef936  | 2.5 KiB
Model   | sha256:5e38e80ddc  | 4.2 MiB
Modelpart | sha256:62e8a1df62  | 14.5 KiB

Unique Layers to ModelKit2 (registry.example.com:8080/acme/team_a/tuned:1)
---------------------------------------
Type    | Digest             | Size
Modelpart | sha256:8e03a2afc0  | 197.5 KiB

"""
"""What kit 1.7.0 printed for these two; it gives layers of one type in any order."""

TUNED = "registry.example.com:8080/acme/team_a/tuned:1"
KEYS = ["SameConfig", "AnnotationsMatch", "SharedLayers", "UniqueLayersA", "UniqueLayersB", "Members"]


def test_text_is_kits_with_the_members_below(filled):
    """kit's text to the letter, then a section of files with status, size and path."""
    done = filled("diff", "localhost/myllm:3.1.4", TUNED)
    assert done.code == 0
    assert done.out.startswith(COMPARED)
    title, line, *members = done.out.removeprefix(COMPARED).splitlines()
    assert (title, line, members[-1]) == ("Members", "-" * 39, "")
    assert "A   195.3 KiB   head/classifier.bin" in members
    assert "D     2.3 MiB   model/model-00001-of-00002.safetensors" in members
    assert not [member for member in members if "README.md" in member]


def test_identical(filled):
    """Two names of one ModelKit are identical; the JSON says it with kit's keys and no change."""
    assert filled("diff", "myllm:3.1.4", "local://localhost/myllm").out == "ModelKits are identical\n"
    same = filled("diff", "myllm:3.1.4", "myllm", "--format", "json").json
    assert list(same) == KEYS
    assert same["SameConfig"] and same["AnnotationsMatch"]
    assert len(same["SharedLayers"]) == 7
    assert same["UniqueLayersA"] == same["UniqueLayersB"] == same["Members"] == []


def test_the_same_files_compressed_in_another_way(filled):
    """No layer is shared, and yet no file differs."""
    done = filled("diff", "myllm:3.1.4", "myllm:3.1.4-gzip")
    assert "Shared Layers\n---------------------------------------\n<none>\n" in done.out
    assert done.out.endswith("Members\n---------------------------------------\n<none>\n\n")
    result = filled("diff", "myllm:3.1.4", "myllm:3.1.4-gzip", "--format", "json").json
    assert not result["SameConfig"] and result["Members"] == []
    assert len(result["UniqueLayersA"]) == len(result["UniqueLayersB"]) == 7
    assert result["UniqueLayersB"][0] == {
        "mediaType": "application/vnd.kitops.modelkit.code.v1.tar+gzip",
        "digest": "sha256:81d86e8363ba7c2b62012da1bd333723d1047b8c3a5d39306a7c8744d6e95834",
        "size": 277,
    }


def test_quiet_prints_paths(filled):
    """With -q the paths that differ, and nothing else."""
    lines = filled("diff", "one-file:1", "empty:0", "-q").out.splitlines()
    assert lines == ["again/lora.safetensors", "lora.safetensors"]


def test_diff_fails(filled):
    """A registry is not there yet (2), an unknown name is 3, one that is no reference 1; nothing is printed."""
    for arguments, code, message in (
        (("remote://registry.example.com/a:1", "myllm"), 2, "can not read a registry yet"),
        (("myllm", "remote://registry.example.com/a:1"), 2, "can not read a registry yet"),
        (("myllm", "nope:1"), 3, "could not find modelkit nope:1"),
        (("myllm", "local://X//y"), 1, "malformed reference"),
        (("myllm",), 2, "to compare two ModelKits, name both"),
        ((), 2, "Missing argument"),
        (("--stat", "myllm", "one-file:1"), 2, "--stat is for a DIRECTORY"),
        ((".",), 3, "is no staging directory"),
    ):
        done = filled("diff", *arguments)
        assert (done.code, done.out) == (code, "")
        assert message in done.err


def test_paths_that_can_not_be_printed_are_escaped(kitfs, make_layout):
    """A file name with an escape sequence or a line break reaches the terminal escaped."""
    for name, files in (("a", {}), ("b", {"x\x1b[2J\ny": b"1"})):
        assert kitfs("import", make_layout(name, "none", files)).code == 0
    assert kitfs("diff", "a:1", "b:1", "-q").out == "weights/x\\x1b[2J\\ny\n"
