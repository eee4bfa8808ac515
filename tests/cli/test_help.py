"""What ``kitfs`` says of itself: help, versions, and answers to words that are no verbs."""

import platform

import click
import pytest

from kitfs import __version__
from kitfs.cli.group import OTHERS, TOPICS
from kitfs.cli.main import VERBS, cli


def test_help_without_a_verb(kitfs):
    """Without any word the help is the result, as with kit, and it is what --help prints."""
    done = kitfs()
    assert (done.code, done.err) == (0, "")
    assert done.out == kitfs("--help").out == kitfs("-h").out


def test_verbs_are_grouped_by_topic(kitfs):
    """Each verb stands once in the help, below a topic, with one line that is not cut off."""
    out = kitfs("--help").out
    names = [name for names in TOPICS.values() for name in names]
    assert len(names) == len(set(names)) and set(VERBS) <= set(names)
    assert f"\n{OTHERS}:" not in out
    for name in VERBS:
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith(".") and not line.endswith("...")


@pytest.mark.parametrize("name", sorted(VERBS))
def test_help_of_a_verb_fits(kitfs, name):
    """The help of a verb says what it is for, and keeps to 80 columns."""
    done = kitfs(name, "--help")
    assert done.code == 0 and done.out.startswith(f"Usage: kitfs {name} ")
    assert cli.get_command(click.Context(cli), name).help
    assert max(map(len, done.out.splitlines())) <= 80 and "\\b" not in done.out


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lst", "Did you mean 'list'?"),
        ("unmount", "'umount'"),
        ("inspct", "'inspect'"),
        ("xyzzy", "No such command 'xyzzy'.\n"),
        ("help", "run kitfs VERB --help"),
        ("cache", "is a verb of kit that kitfs does not have."),
    ],
)
def test_what_is_no_verb(kitfs, word, meant):
    """A word that is no verb is a usage error, with what may have been meant; verbs of kit are known as such."""
    done = kitfs(word)
    assert (done.code, done.out) == (2, "") and meant in done.err


def test_version(kitfs):
    """version prints a line each for kitfs, Python and the kernel, as kit's; -q and --version one word or line."""
    assert kitfs("version").out.splitlines() == [
        f"Version: {__version__}",
        f"Python version: {platform.python_version()}",
        f"Kernel: Linux {platform.release()}",
    ]
    assert kitfs("version", "-q").out == f"{__version__}\n"
    assert kitfs("--version").out == f"kitfs {__version__}\n"
    assert kitfs("version", "--format", "json").json["version"] == __version__


def test_go_template(kitfs):
    """A Go template as --format is a usage error that says what there is instead."""
    done = kitfs("list", "--format", "{{.Repo}}")
    assert done.code == 2 and "Go templates are not supported; --format json" in done.err


def test_own_options_come_first(kitfs):
    """The help of a verb has its own options, then those of all verbs."""
    own, _, shared = kitfs("unpack", "--help").out.partition("\nGlobal options:\n")
    assert "--overwrite" in own and "--help" in own and "--quiet" not in own and "\n  REFERENCE" not in own
    assert "--quiet" in shared and "--home" in shared and "--overwrite" not in shared


def test_examples_stand_as_they_were_written(kitfs):
    """The examples of a verb end its help, a line each, to be copied."""
    examples = kitfs("list", "--help").out.partition("Examples:\n")[2].splitlines()
    assert examples == [
        "    kitfs list",
        "    kitfs list myllm --filter datasets:train",
        "    kitfs list --format json",
    ]
