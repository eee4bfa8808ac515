"""``kitfs tag`` and ``kitfs remove``: kit's words, and what is left."""

import pytest

TAR = "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316"
GZIP = "sha256:54a4c05214183b267e3b0579af3796ea3f41d88554315a8bbe7757808ae8aba8"


def rows(done) -> dict[str, str]:
    """ModelKitID by reference, from the table."""
    lines = [line.split() for line in done.out.splitlines()[1:]]
    return {f"{line[0]}:{line[1]}": line[-1] for line in lines if line[0] != "<none>"}


def test_tag_makes_and_moves(filled):
    """A tag is made in any repository, and moved when it is there, as with kit."""
    assert filled("tag", "myllm:3.1.4", "registry.example.com/a/b:1").out == (
        "Modelkit myllm:3.1.4 tagged as registry.example.com/a/b:1\n"
    )
    assert filled("tag", "myllm:3.1.4-gzip", "myllm:latest").code == 0
    listed = rows(filled("list"))
    assert listed["registry.example.com/a/b:1"] == TAR
    assert listed["myllm:latest"] == GZIP


def test_tag_by_digest_and_without_tag(filled):
    """The source may be a ModelKitID; a target without a tag is latest."""
    assert filled("tag", f"myllm@{GZIP}", "other").code == 0
    assert rows(filled("list"))["other:latest"] == GZIP


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("nope:1", "x:1", 3),
        ("myllm:3.1.4", "X//y", 1),
        ("myllm:3.1.4", f"x@{TAR}", 2),
        (f"x@sha256:{'0' * 64}", "x:1", 3),
    ],
)
def test_tag_fails(filled, source, target, code):
    """What is not there is 3, what is no reference 1, and a target that is no tag 2."""
    before = filled("list").out
    assert filled("tag", source, target).code == code
    assert filled("list").out == before


def test_remove_one_tag(filled):
    """A tag goes, the others of its ModelKit stay; kit's words."""
    assert filled("remove", "myllm:latest").out == f"Removed myllm:latest (digest {TAR})\n"
    assert "myllm:latest" not in rows(filled("list"))
    assert rows(filled("list"))["myllm:3.1.4"] == TAR


def test_remove_several_tags(filled):
    """name:tag,tag removes each; when one is not there, none goes."""
    assert filled("remove", "myllm:latest,3.1.4-gzip,nope").code == 3
    assert "myllm:latest" in rows(filled("list"))
    assert len(filled("remove", "myllm:latest,3.1.4-gzip").out.splitlines()) == 2
    assert set(rows(filled("list", "myllm"))) == {"myllm:3.1.4", "myllm:3.1.4-fast"}


@pytest.mark.parametrize("arguments", [("myllm:latest", "--force"), (f"myllm@{TAR}",), (TAR,)])
def test_remove_with_all_its_tags(filled, arguments):
    """By --force or by ModelKitID, all its tags in the repository go."""
    assert filled("remove", *arguments).code == 0
    assert set(rows(filled("list", "myllm"))) == {"myllm:3.1.4-fast", "myllm:3.1.4-gzip"}


def test_remove_all_untagged(filled):
    """--all removes what has no tag, and nothing else."""
    filled("remove", "empty:0")
    assert filled("remove", "--all").out.split()[1].startswith("sha256:2ae55d09")
    assert len(filled("list").out.splitlines()) == 8


def test_remove_everything(filled, tmp_path):
    """--all --force leaves an empty store and no blob."""
    done = filled("remove", "--all", "--force")
    assert done.out.count("Untagged ") == 8 and done.out.count("Removed ") == 7
    lines = [line for line in done.out.splitlines() if "myllm" in line]
    assert lines[:3] == ["Untagged myllm:3.1.4", "Untagged myllm:latest", f"Removed myllm@{TAR}"]
    assert filled("list", "-q").out == ""
    assert not [path for path in (tmp_path / "home/blobs").rglob("*") if path.is_file()]


def test_remove_fails(filled):
    """What is not there is 3; no reference and no --all, or both, is 2."""
    assert filled("remove", "nope:1").code == 3
    assert filled("remove").code == 2
    assert filled("remove", "--all", "myllm:latest").code == 2


def test_an_untagged_kit_has_no_tag_to_remove(filled):
    """Removing by ModelKitID what has no tag says how it goes instead."""
    filled("remove", "empty:0")
    digest = filled("list", "-q").out.splitlines()[0]
    done = filled("remove", digest)
    assert done.code == 2 and "--all" in done.err


def test_words_of_what_is_not_there(filled):
    """What has failed is said in kit's words."""
    assert filled("tag", "nope:1", "x:1").err.startswith("kitfs: failed to tag modelkit: model nope:1 not found\n")
    assert filled("remove", "nope:1").err.startswith("kitfs: failed to remove: model nope:1 not found\n")


def test_forms(filled):
    """As JSON tag and remove give names and ModelKitIDs, with -q each ModelKitID once."""
    made = filled("tag", "myllm:3.1.4-gzip", "other", "--format", "json").json
    assert made == {"source": "myllm:3.1.4-gzip", "target": "other:latest", "digest": GZIP}
    assert filled("tag", "-q", "other", "other:2").out == f"{GZIP}\n"
    gone = filled("remove", "other:latest,2", "--format", "json").json
    assert gone == [{"reference": "other:latest", "digest": GZIP}, {"reference": "other:2", "digest": GZIP}]
    assert filled("remove", "-q", "myllm:3.1.4-gzip").out == f"{GZIP}\n"
    assert filled("remove", "--all", "--format", "json").json == [{"reference": GZIP, "digest": GZIP}]
