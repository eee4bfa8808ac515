"""The shape of the project itself: sizes, names, and that what the docs mention exists."""

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc", "tools"}
EMPTY_SUFFIXES = ("Manager", "Helper", "Util", "Utils")

SOURCES = sorted(path for folder in ("kitfs", "bench", "tests") for path in (PROJECT / folder).rglob("*.py"))
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def iter_definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def iter_code_spans(text: str) -> Iterator[str]:
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def iter_anchors(text: str) -> Iterator[str]:
    """The anchors that a Markdown page's headings have on the usual forges."""
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_module_and_its_functions_are_short(path: Path):
    """No module has more than 400 lines and no function more than 70."""
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_LINES_MAX, f"{name_of(path)} has {lines} lines"
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in iter_definitions(path)
        if not isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    }
    assert not long


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_names_say_something(path: Path):
    """No module or class has a name that says nothing, such as utils or Manager."""
    assert path.stem not in EMPTY_NAMES and path.parent.name not in EMPTY_NAMES
    classes = [node.name for node in iter_definitions(path) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if name.endswith(EMPTY_SUFFIXES)]


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(PROJECT / "kitfs")], ids=name_of)
def test_module_says_what_it_is(path: Path):
    """Every module of the package begins with a docstring."""
    assert ast.get_docstring(ast.parse(path.read_text()))


def forbidden_words() -> set[str]:
    """The anti-terms of the glossary that no name may contain; one with an asterisk has other uses too."""
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \|([^|]*)\|$", (PROJECT / "docs" / "glossary.md").read_text(), flags=re.M)
    cells = {word.strip() for row in rows[1:] for word in row.split(",")}
    return {word for word in cells if re.fullmatch(r"[a-z]+", word)}


def iter_words(name: str) -> Iterator[str]:
    yield from (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))


def iter_names(tree: ast.AST) -> Iterator[str]:
    """Every name that a module gives to something: definitions, parameters, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(PROJECT / "kitfs")], ids=name_of)
def test_names_keep_to_the_glossary(path: Path):
    """No name in the package uses a word that the glossary rules out."""
    words = {word: name for name in iter_names(ast.parse(path.read_text())) for word in iter_words(name)}
    assert not {words[word] for word in words.keys() & forbidden_words()}


def test_glossary_rules_out_words():
    """The glossary's table is read as it is meant: some words are ruled out, those with other uses are not."""
    assert "oid" in forbidden_words()
    assert "object" not in forbidden_words()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_document_links_resolve(path: Path):
    """Every relative link of a document leads to a file, and its anchor to a heading there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name) if name else path
        assert page.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in iter_anchors(page.read_text()), f"{path.name} links to {target}"


def resolve(dotted: str) -> object:
    """The module, class, function or attribute with a dotted name.

    Raises:
        AttributeError: when there is no such thing.
        ModuleNotFoundError: when there is no such module.
    """
    module, *rest = dotted.split(".")
    thing: object = importlib.import_module(module)
    for part in rest:
        if not hasattr(thing, part):
            importlib.import_module(f"{getattr(thing, '__name__', '?')}.{part}")
        thing = getattr(thing, part)
    return thing


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_document_names_exist(path: Path):
    """Every file, test, module, function, and verb that a document names in code quotes is there."""
    from kitfs.cli.main import VERBS

    for span in iter_code_spans(path.read_text()):
        if re.fullmatch(r"(kitfs|bench|tests|docs)(/[\w.\-]+)+/?(::\w+)?", span):
            file, _, test = span.partition("::")
            assert (PROJECT / file).exists(), f"{path.name} names {span}"
            assert not test or f"def {test}(" in (PROJECT / file).read_text(), f"{path.name} names {span}"
        elif re.fullmatch(r"kitfs[\w@-]*\.(service|socket|timer)", span):
            assert (PROJECT / "systemd" / span).exists(), f"{path.name} names {span}"
        elif re.fullmatch(r"(kitfs|bench)(\.\w+)+(\(\))?", span):
            resolve(span.removesuffix("()"))
        elif verb := re.match(r"kitfs (?:-\S+ )*([a-z]+)\b", span):
            assert verb[1] in VERBS, f"{path.name} names {span}"
        elif re.fullmatch(r"test_\w+", span):
            assert any(f"def {span}(" in source.read_text() for source in SOURCES), f"{path.name} names {span}"


def iter_rows(text: str) -> Iterator[list[str]]:
    """Rows of a page's tables whose last column is headed ``test``, as cells."""
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells or not header:
            header = cells
        elif header[-1] == "test" and not set(cells[0]) <= {"-"}:
            yield cells


def test_every_crash_point_has_a_test():
    """Each row of the tables of crash points names at least one test (that it is there, the test above sees to)."""
    rows = list(iter_rows((PROJECT / "docs" / "failures.md").read_text()))
    assert len(rows) > 50
    assert not [row for row in rows if not re.search(r"`test_\w+`", row[-1])]


def test_version_is_said_once():
    """The version in pyproject.toml, in the package and at the top of the changelog are the same."""
    import tomllib

    from kitfs import __version__

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert f"## [{__version__}]" in (PROJECT / "CHANGELOG.md").read_text()


def test_import_contracts_list_every_package():
    """Every package and module of kitfs stands in a row of the import contracts (exhaustive = True)."""
    rows = (PROJECT / ".importlinter").read_text()
    for path in (PROJECT / "kitfs").iterdir():
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.stem.startswith("__"):
            assert re.search(rf"\b{path.stem}\b", rows), path.stem


def test_scripts_are_sound():
    """The shell scripts parse and can be executed."""
    for name in ("dev", ".ci/run"):
        script = PROJECT / name
        assert script.stat().st_mode & 0o111
        subprocess.run(["bash", "-n", script], check=True)
