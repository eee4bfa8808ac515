"""The outline of a layer: what its TOC says, found by name and by number."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.store.outline import ENTRIES, IMPLIED, Outline, OutlineCorrupt, encode_outline
from kitfs.store.records import KIND_DIRECTORY, KIND_FILE, TocMember


def file(path: bytes, size: int = 0) -> TocMember:
    return TocMember(path, KIND_FILE, 0o640, size, 0, bytes(32))


def walk(outline: Outline) -> dict[bytes, object]:
    """Every path with its entry, found by going down from the root."""
    found = {}
    waiting = [(b"", 0)]
    for path, directory in waiting:
        for entry in outline.iter(*outline.children(directory)):
            assert entry.parent == directory
            child = path + b"/" + entry.name if path else entry.name
            found[child] = entry
            if entry.is_directory:
                waiting.append((child, entry.number))
    return found


NAMES = st.sampled_from([b"a", b"b", b"ab", b"\xff", b"B"])


@st.composite
def tocs(draw) -> list[TocMember]:
    """Members whose paths fit together, in any order, each once, directories implied or told."""
    members: list[TocMember] = []
    kinds: dict[bytes, int] = {}
    for parts in draw(st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=30)):
        path, kind = b"/".join(parts), draw(st.sampled_from([KIND_FILE, KIND_DIRECTORY]))
        above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
        if path in kinds or any(kinds.get(folder) == KIND_FILE for folder in above):
            continue
        kinds.update(dict.fromkeys(above, KIND_DIRECTORY) | {path: kind})
        members.append(TocMember(path, kind, draw(st.integers(0, 0o7777)), len(members) * (1 - kind), 0))
    return members


@given(tocs())
def test_an_outline_says_what_its_toc_says(toc):
    """Every member is at its path with its kind, mode, size and place; what paths imply is a directory of 0755."""
    outline = Outline.of(toc)
    found = walk(outline)
    assert len(found) == outline.count - 1
    assert outline.size == sum(member.size for member in toc)
    for index, member in enumerate(toc):
        entry = found.pop(member.path)
        told = (entry.is_directory, entry.mode, entry.size, entry.member)
        assert told == (member.kind == KIND_DIRECTORY, member.mode, member.size, index)
    for entry in found.values():
        assert (entry.is_directory, entry.mode, entry.size, entry.member) == (True, 0o755, 0, IMPLIED)


@given(tocs())
def test_every_entry_is_found_by_its_name_and_nothing_else_is(toc):
    """Looking a name up in its directory finds it; other names, and names in files, find nothing."""
    outline = Outline.of(toc)
    for entry in walk(outline).values():
        assert outline.find(entry.parent, entry.name) == entry == outline.get(entry.number)
        assert outline.find(entry.parent, entry.name + b"0") is None
        if not entry.is_directory:
            assert outline.find(entry.number, entry.name) is None


def test_a_directory_keeps_the_order_of_the_archive():
    """Files of a directory are numbered as the layer has them, whatever their names and what lies between."""
    outline = Outline.of([file(b"d/z"), file(b"x"), file(b"d/a"), file(b"d/m/1"), file(b"d/b")])
    directory = outline.find(0, b"d")
    names = [entry.name for entry in outline.iter(*outline.children(directory.number))]
    assert names == [b"z", b"a", b"m", b"b"]


@pytest.mark.parametrize("is_flat", [True, False])
def test_entries_of_many_values_are_found(is_flat):
    """With entries in four values every name is found, wherever its directory begins; each value is asked for."""
    names = [b"%07d" % number if is_flat else b"%02d/%07d" % (number % 50, number) for number in range(3 * ENTRIES)]
    random.Random(1).shuffle(names)
    values = encode_outline([file(name, 1) for name in names])
    asked = set()

    def load(number: int) -> bytes:
        asked.add(number)
        return values[number]

    outline = Outline(load)
    assert asked == {0} and len(values) == 4
    for index, name in enumerate(names):
        folder, _, last = name.rpartition(b"/")
        directory = outline.find(0, folder).number if folder else 0
        assert outline.find(directory, last).member == index
    assert [entry.number for entry in outline.iter(0, outline.count)] == list(range(outline.count))
    assert asked == {0, 1, 2, 3}


def test_a_raw_layer_has_a_size_and_no_entries():
    """Its only member has no name of its own."""
    outline = Outline.of([TocMember(b"", KIND_FILE, 0o644, 7, 0, bytes(32))])
    assert (outline.count, outline.size) == (1, 7)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: b"\x02" + raw[1:], lambda raw: raw[:-1]])
def test_a_value_that_is_none_is_refused(damage):
    """Empty, of another version, or cut short."""
    with pytest.raises(OutlineCorrupt):
        Outline(lambda _: damage(encode_outline([file(b"a"), file(b"b")])[0]))
