"""``kitfs log``, and what ``inspect`` says of lineage: ModelKits with the annotations of derived ones."""

from collections.abc import Callable

import pytest

MESSAGE = "tuned on march\n\n\tlonger text, résumé\nand more"
FIRST_CREATED = "2026-03-01T10:00:00Z"


@pytest.fixture
def imported(kitfs, chain) -> Callable[[], Callable]:
    """Imports the chain as it is by then."""

    def run():
        assert kitfs("import", chain.layout, "--copy", "--as", "tuned", "--progress", "none").code == 0
        return kitfs

    return run


def test_log_goes_back_to_the_first(chain, imported):
    """Each ModelKit stands with its id, the tags it has now, its parent and the parent's old name, time and message."""
    first = chain.add()
    second = chain.add(parent_reference="tuned:gold", message=MESSAGE)
    kitfs = imported()
    kitfs("tag", "tuned:1", "other:1")
    done = kitfs("log", "tuned:2")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        f"modelkit {second} (tuned:2)\n"
        f"Parent:  {first} (tuned:gold)\n"
        "Date:    2026-03-01T10:00:01Z\n"
        "\n"
        "    tuned on march\n"
        "\n"
        "            longer text, résumé\n"
        "    and more\n"
        "\n"
        f"modelkit {first} (other:1, tuned:1)\n"
        f"Date:    {FIRST_CREATED}\n"
    )


def test_log_as_json(chain, imported):
    """With --format json each ModelKit has the same keys, whatever is known of it."""
    first = chain.add()
    second = chain.add(parent_reference="tuned:1", message=MESSAGE)
    assert imported()("log", "tuned:2", "--format", "json").json == [
        {
            "digest": second,
            "tags": ["tuned:2"],
            "created": "2026-03-01T10:00:01Z",
            "message": MESSAGE,
            "parent": first,
            "parentReference": "tuned:1",
            "stored": True,
        },
        {
            "digest": first,
            "tags": ["tuned:1"],
            "created": FIRST_CREATED,
            "message": "",
            "parent": None,
            "parentReference": "",
            "stored": True,
        },
    ]


def test_log_of_so_many(chain, imported):
    """-q prints the ids, newest first, and -n the newest N; less than one is no number."""
    ids = [chain.add() for _ in range(4)][::-1]
    kitfs = imported()
    assert kitfs("log", "-q", "tuned:4").out.split() == ids
    assert kitfs("log", "-q", "-n", "2", f"tuned@{ids[0]}").out.split() == ids[:2]
    assert kitfs("log", "-q", "-n", "9", "tuned:2").out.split() == ids[2:]
    assert kitfs("log", "-n", "0", "tuned:2").code == 2


def test_ancestor_that_is_not_in_the_store_is_shown_as_that(chain, imported):
    """A parent that was never there, or was collected since, ends the list without being an error."""
    absent = chain.add(listed=False)
    second = chain.add(parent_reference="elsewhere:1")
    chain.add()
    kitfs = imported()
    assert kitfs("log", "tuned:2").out == (
        f"modelkit {second} (tuned:2)\n"
        f"Parent:  {absent} (elsewhere:1)\n"
        "Date:    2026-03-01T10:00:01Z\n"
        "\n"
        f"modelkit {absent} (not in the store)\n"
    )
    assert kitfs("log", "tuned:2", "--format", "json").json[1] == {
        "digest": absent,
        "tags": [],
        "created": "",
        "message": "",
        "parent": None,
        "parentReference": "",
        "stored": False,
    }
    kitfs("remove", "tuned:2")
    assert kitfs("gc").code == 0
    assert kitfs("log", "tuned:3").out.endswith(f"modelkit {second} (not in the store)\n")


def test_annotation_that_is_no_id_is_named(chain, imported):
    """A parent that is no ModelKitID is an error that says which ModelKit has it, after those that came before."""
    broken = chain.add(parent="latest")
    whole = chain.add()
    done = imported()("log", "-q", "tuned:2")
    assert (done.code, done.out) == (1, f"{whole}\n")
    assert f"{broken}: its annotation org.kitfs.parent is no ModelKitID: 'latest'" in done.err


def test_message_can_not_write_on_the_terminal(chain, imported):
    """Escape sequences of a message and of a reference are shown, not sent; the lines beside them stay as they are."""
    chain.add()
    chain.add(parent_reference="x\x1b[2J", message="good é\nbad \x1b]0;title\x07")
    out = imported()("log", "tuned:2").out
    assert "\x1b" not in out and "\x07" not in out
    assert "    good é\n    bad \\x1b]0;title\\x07\n" in out and "(x\\x1b[2J)" in out


def test_log_of_what_is_not_there(kitfs, imported, chain):
    """A reference that the store does not hold is 3, as for inspect."""
    chain.add()
    imported()
    assert kitfs("log", "nope:1").code == 3


def test_inspect_shows_lineage(chain, imported):
    """inspect has one more key for a derived ModelKit, behind kit's own, and none for one that is not."""
    first = chain.add()
    chain.add(parent_reference="tuned:1", message=MESSAGE)
    kitfs = imported()
    shown = kitfs("inspect", "tuned:2").json
    assert list(shown) == ["digest", "cliVersion", "kitfile", "manifest", "lineage"]
    assert shown["lineage"] == {"parent": first, "parentReference": "tuned:1", "message": MESSAGE}
    assert list(kitfs("inspect", "tuned:1").json) == ["digest", "cliVersion", "kitfile", "manifest"]
