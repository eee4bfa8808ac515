"""kit's grammar for ``--filter``: what is wanted of a Kitfile, and what is refused, with all that is wrong."""

import pytest

from kitfs.modelkit.filters import (
    EVERYTHING,
    FilterMalformed,
    for_parents,
    of_types,
    parse_filter,
    parse_filters,
    wants_any,
    wants_kitfile,
)
from kitfs.oci.kitfile import parse_kitfile_yaml
from kitfs.oci.kitfile_schema import Artifact, iter_artifacts

KITFILE = b"""\
manifestVersion: 1.0.0
model:
  name: big
  path: model
  parts: [{name: lora, path: parts/lora}]
code: [{path: src}, {path: ./lib}]
datasets: [{name: train, path: data/train}, {name: test, path: data/test}]
docs: [{path: README.md}]
prompts: [{name: system, path: prompts/system.md}]
mcpServers: [{name: tools, path: tools.mcpb}]
"""


def wanted(*texts: str) -> list[str]:
    """Paths of what some filters want, in order."""
    filters = parse_filters(texts)
    return [one.path for one in iter_artifacts(parse_kitfile_yaml(KITFILE)) if wants_any(filters, [one])]


def test_no_filters_want_everything():
    """Without a filter every entry and the Kitfile are wanted."""
    assert len(wanted()) == 9
    assert wants_kitfile(EVERYTHING)


@pytest.mark.parametrize(
    ("texts", "paths"),
    [
        (["model"], ["model", "parts/lora"]),
        (["code"], ["src", "./lib"]),
        (["datasets,docs"], ["data/train", "data/test", "README.md"]),
        (["prompts"], ["prompts/system.md"]),
        (["mcpservers"], ["tools.mcpb"]),
        (["kitfile"], []),
        (["datasets:train"], ["data/train"]),
        (["datasets:data/test"], ["data/test"]),
        (["model,datasets:lora,test"], ["parts/lora", "data/test"]),
        (["code:lib"], []),
        (["code:./lib"], ["./lib"]),
        (["docs:train"], []),
        (["model:big", "datasets:train"], ["model", "data/train"]),
        (["docs", "docs"], ["README.md"]),
    ],
)
def test_filter_wants_types_and_names(texts, paths):
    """A type wants its entries, a model's parts too, prompts not as code; names restrict them; several add up."""
    assert wanted(*texts) == paths


def test_kitfile_is_wanted_by_its_type_whatever_the_names():
    """As in kit, names do not restrict the Kitfile."""
    assert wants_kitfile(parse_filters(["kitfile:nothing"]))
    assert not wants_kitfile(parse_filters(["model", "docs"]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models", "invalid filter type models (must be one of 'kitfile', 'model', 'datasets', 'code', 'docs', "
                   "'prompts', or 'mcpservers')"),
        ("", "invalid filter type  (must be"),
        ("Model", "invalid filter type Model (must be"),
        ("model, docs", "invalid filter type  docs (must be"),
        ("model:a:b", "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
    ],
)  # fmt: skip
def test_malformed_filter_is_refused_in_kits_words(text, problem):
    """What kit refuses is refused with its message."""
    with pytest.raises(FilterMalformed) as caught:
        parse_filter(text)
    assert str(caught.value).startswith(problem)


def test_all_mistakes_of_all_filters_are_named():
    """Several filters with several mistakes give one error with a line for each."""
    with pytest.raises(FilterMalformed) as caught:
        parse_filters(["weights,model,dataset", "docs", "model:a:b"])
    assert [problem.split(" (")[0] for problem in caught.value.problems] == [
        "invalid filter type weights",
        "invalid filter type dataset",
        "invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]",
    ]
    assert len(str(caught.value).splitlines()) == 4


def test_parents_give_at_most_models():
    """Of a parent only models are wanted, by the names that the filters give; nothing where none is asked for."""
    assert for_parents(EVERYTHING) == of_types(["model"])
    assert for_parents(parse_filters(["kitfile,model,code:x", "docs"])) == parse_filters(["model:x"])
    assert for_parents(parse_filters(["kitfile", "docs:y"])) is None


def test_layer_is_wanted_for_any_of_its_entries():
    """A blob that two entries name is wanted when either is."""
    model, dataset = [one for one in iter_artifacts(parse_kitfile_yaml(KITFILE)) if one.path in ("model", "data/test")]
    assert isinstance(model, Artifact)
    assert wants_any(parse_filters(["datasets"]), [model, dataset])
    assert not wants_any(parse_filters(["docs"]), [model, dataset])
