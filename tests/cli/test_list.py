"""``kitfs list``: kit 1.7.0's form, byte by byte."""

import pytest

HEADER = "REPOSITORY   TAG   MAINTAINER   NAME   SIZE   DIGEST\n"


def test_table_is_kits(filled, shared_fixtures):
    """The table of kit 1.7.0's storage is exactly what kit 1.7.0 printed."""
    assert filled("list").out == (shared_fixtures / "kit-v1.7.0/kit-list.txt").read_text()


@pytest.mark.parametrize("version", ["kit-v0.1.0", "kit-v0.1.3", "kit-v0.2.3", "kit-v0.2.5", "kit-v0.4.0"])
def test_table_of_older_kits(kitfs, shared_fixtures, version):
    """So is the table of older storages, but for kit 0.1.0's empty column at the end of the ModelKit's line."""
    kitfs("import", shared_fixtures / version, "--copy", "--progress", "none")
    expected = (shared_fixtures / version / "kit-list.txt").read_text()
    if version == "kit-v0.1.0":
        assert expected.endswith("   \n")
        expected = expected.removesuffix("   \n") + "\n"
    assert kitfs("list").out == expected


def test_no_store_is_an_empty_list(kitfs, tmp_path):
    """Before anything was imported, the list is empty, and no store is made."""
    done = kitfs("list")
    assert (done.code, done.out) == (0, HEADER)
    assert not (tmp_path / "home").exists()
    assert kitfs("list", "--format", "json").json == []


def test_json_is_kits(filled):
    """JSON has kit's keys in kit's order, one object for each ModelKit of a repository, tags in a list."""
    items = filled("list", "--format", "json").json
    assert [list(item) for item in items] == [["repo", "digest", "tags", "modelName", "size", "author"]] * 7
    assert items[1] == {
        "repo": "myllm",
        "digest": "sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316",
        "tags": ["3.1.4", "latest"],
        "modelName": "slice",
        "size": "4.5 MiB",
        "author": "kitfs",
    }
    assert '"modelName": "\\u003cnone\\u003e"' in filled("list", "--format", "json").out


@pytest.mark.parametrize(
    ("wanted", "count"),
    [("myllm", 4), ("localhost/myllm", 4), ("myllm:latest", 1), ("registry.example.com:8080/acme/team_a/tuned", 1),
     ("other", 0), ("sha256:287937ed371eb5caca7bca881d2896c192c2742d58e597caedf2139faa547316", 2)],
)  # fmt: skip
def test_one_repository(filled, wanted, count):
    """A repository, a tag or a ModelKitID limits the list."""
    assert len(filled("list", wanted).out.splitlines()) == count + 1


@pytest.mark.parametrize(
    ("filters", "repositories"),
    [
        (["kitfile"], ["empty", "myllm", "myllm", "myllm", "one-file", "whole", "tuned"]),
        (["model"], ["myllm", "myllm", "myllm", "one-file", "whole", "tuned"]),
        (["prompts"], []),
        (["code:./src"], ["myllm"] * 3),
        (["model,datasets:train"], ["myllm"] * 3),
        (["model:myllm:3.1.4"], None),
        (["model:slice-tuned"], ["tuned"]),
        (["datasets:train", "docs:README.md"], ["myllm", "myllm", "myllm", "tuned"]),
        (["nonsense"], None),
    ],
)
def test_filter(filled, filters, repositories):
    """--filter keeps ModelKits with an entry that matches, in unpack's grammar; a malformed one is 2."""
    options = [word for text in filters for word in ("--filter", text)]
    done = filled("list", "--format", "json", *options)
    if repositories is None:
        assert done.code == 2 and "invalid filter" in done.err
    else:
        assert [item["repo"].rsplit("/")[-1] for item in done.json] == repositories


def test_quiet(filled):
    """-q prints each ModelKitID once."""
    assert len(filled("list", "-q").out.splitlines()) == 7


def test_untagged(filled):
    """What has no tag any more is shown with <none>, as kit shows what it packed without one."""
    filled("remove", "empty:0")
    row = filled("list").out.splitlines()[1].split()
    assert row[:2] == ["<none>", "<none>"] and row[-1].startswith("sha256:2ae55d09")


def test_one_rotten_config_does_not_hide_the_others(kitfs, shared_fixtures, tmp_path):
    """A ModelKit whose config can not be read keeps its line, with a warning; the others are listed as ever."""
    kitfs("import", shared_fixtures / "kit-v1.7.0", "--copy", "--progress", "none")
    config = tmp_path / "home/blobs/sha256/14/140e17e620f62380c7801047d14343caddbbfc87d97a2788f77e9a210843826c"
    config.chmod(0o644)
    config.write_bytes(b"x" * 40)
    done = kitfs("list")
    assert done.code == 0 and "empty@sha256:2ae55d09" in done.err
    assert [line.split()[0] for line in done.out.splitlines()[1:3]] == ["empty", "myllm"]
    assert len(done.out.splitlines()) == 9
