"""Kitfiles that kit 1.7.0 takes and refuses, each tried with ``kit pack``: here the verdict is the same.

The differences are named: what kit packs without the user's files (symbolic links, paths outside), with a second
document or a tag passed over, or what newer kits refuse (one path spelled twice).
"""

import os
from pathlib import Path

import pytest

from kitfs.errors import KitfsError
from kitfs.modelkit.kitfile_check import check_kitfile, looking_into

ACCEPTED = [
    b"---\n",
    b"null\n",
    b"~\n",
    b"{}\n",
    b"%YAML 1.1\n---\nmodel: {path: m}\n",
    b"model: {path: m}\n...\n",
    b"package:\n  authors: [1, true, ~]\n",
    b"manifestVersion: 1\n",
    b"manifestVersion: 1.0\n",
    b"manifestVersion: true\n",
    b"manifestVersion: ~\n",
    b"manifestVersion: 2001-01-01\n",
    b"manifestVersion: ''\n",
    b"model:\n  parameters: {a: 1e400}\n",
    b"model:\n  parameters: {a: 99999999999999999999}\n",
    b"model:\n  parameters: {d: 2001-01-01}\n",
    b"model:\n  parameters: !!float 5\n",
    b"model:\n  parameters: !!str 5\n",
    b"model:\n  path: !!str m\n",
    b"model: !!map {path: m}\n",
    b"model: !!seq {path: m}\n",
    b"code:\n  - &a {path: s}\n  - <<: *a\n    path: m\n",
    b"model:\n  <<: {path: m}\n",
    b"model:\n  path: m/..\n",
    b"model:\n  path: d..d\n",
    b"model: {}\n",
    b"code:\n  - path: ''\n",
    b"code:\n  - {}\n",
    b"code:\n  - ~\n",
    b"docs: [~, {path: s}]\n",
    b"docs:\n  - {}\n",
    b"datasets:\n  - name: a\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: " + b"x" * 64 + b"}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: _a.b-c}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: 5}\n",
    b"model:\n  path: Kitfile\n",
    b"model:\n  path: m/sub/../w\n",
    b"model:\n  path: 'with space'\n",
    b"model:\n  path: 1\n",
    b"model:\n  path: true\n",
    b"model:\n  path: null\n",
    b"model:\n  path: ~\n",
    b"\xef\xbb\xbfmodel:\n  path: m\n",
    b"model:\n  name: \xe2\x80\xa8\n",
    b"model:\r\n  path: m\r\n",
    b"model:\r  path: m\r",
    b"model:\n  parameters: " + b"[" * 60 + b"]" * 60 + b"\n",
    b"model:\n  format: onnx\n  path: m\n",
    b"model:\n  path: m\n  version: 1.10\n",
    b"? model\n: path: m\n",
    b"model: ~\n",
    b"code: ~\n",
    b"code: []\n",
    b"package: ~\n",
    b"model:\n  parameters: {a: 0x1F, b: 0b1, c: 017, d: 1_000, e: +1, f: .5, g: 1., h: 12:30}\n",
]

REFUSED = [
    b"",
    b"# only\n",
    b"...\n",
    b"- a\n",
    b"text\n",
    b"42\n",
    b"'q'\n",
    b"[]\n",
    b"{",
    b"}",
    b"a: b: c\n",
    b"model:\n\tpath: m\n",
    b"model:\n  path: m\n path: s\n",
    b"model: [\n",
    b"model: {path: m\n",
    b"model:\n  path: 'm\n",
    b'model:\n  path: "m\\q"\n',
    b"%FOO\n---\nmodel: {path: m}\n",
    b"modle: x\n",
    b"Model: {path: m}\n",
    b"model:\n  Path: m\n",
    b"model:\n  path: m\n  digest: sha256:x\n",
    b"model:\n  path: m\n  diffId: x\n",
    b"model:\n  layerinfo: {}\n",
    b"package:\n  nme: x\n",
    b"code:\n  - name: x\n    path: s\n",
    b"docs:\n  - license: x\n    path: s\n",
    b"datasets:\n  - framework: x\n    path: s\n",
    b"model:\n  parts:\n    - path: m\n      description: x\n",
    b"extra: {}\n",
    b"model: m\n",
    b"model: [m]\n",
    b"model:\n  path: [m]\n",
    b"model:\n  path: {a: m}\n",
    b"model:\n  name: [a]\n",
    b"model:\n  parts: m\n",
    b"model:\n  parts: {path: m}\n",
    b"model:\n  parts: [m]\n",
    b"code: s\n",
    b"code: {path: s}\n",
    b"code: [s]\n",
    b"code: [[s]]\n",
    b"package: x\n",
    b"package: []\n",
    b"package:\n  authors: me\n",
    b"package:\n  authors: {a: b}\n",
    b"package:\n  authors: [[a]]\n",
    b"package:\n  authors: [a, {b: c}]\n",
    b"manifestVersion: [1]\n",
    b"manifestVersion: {a: 1}\n",
    b"model:\n  path: m\n  path: s\n",
    b"model: {path: m}\nmodel: {path: s}\n",
    b"model: {path: m, 'path': s}\n",
    b"code:\n  - {path: s, path: s}\n",
    b"model:\n  parameters: {a: 1, a: 2}\n",
    b"model:\n  parameters: {1: a}\n",
    b"model:\n  parameters: {true: a}\n",
    b"model:\n  parameters: {[a]: b}\n",
    b"model:\n  parameters: {a: {1: 2}}\n",
    b"model:\n  parameters: {~: a}\n",
    b"model:\n  parameters: .nan\n",
    b"model:\n  parameters: [.inf]\n",
    b"model:\n  parameters: {a: -.inf}\n",
    b"model:\n  parameters: !!int x\n",
    b"model:\n  path: !!int m\n",
    b"model:\n  name: !!null x\n",
    b"model:\n  name: !!bool x\n",
    b"model: *a\n",
    b"model: &a {path: m}\ncode: [*a]\n",
    b"a: &a {path: m}\nmodel: *a\n",
    b"model:\n  parameters: &a [*a]\n",
    b"model: &a {path: m, parts: [*a]}\n",
    b"code:\n  - &a {path: s}\n  - <<: *a\n",
    b"model:\n  <<: [1]\n",
    b"model:\n  <<: x\n",
    b"model:\n  <<: {pth: m}\n",
    b"model:\n  <<: {path: m}\n  <<: {name: a}\n",
    b"model:\n  path: /abs\n",
    b"model:\n  path: /\n",
    b"model:\n  path: //m\n",
    b"code:\n  - path: /etc\n",
    b"docs:\n  - path: /etc/passwd\n",
    b"model:\n  path: m\n  parts:\n    - path: /x\n",
    b"datasets:\n  - path: /x\n",
    b"model:\n  path: m\ncode:\n  - path: m\n",
    b"model: {}\ncode:\n  - path: .\n",
    b"model: {name: x}\ncode:\n  - description: d\n",
    b"code:\n  - {}\n  - {}\n",
    b"code:\n  - path: ''\ndocs:\n  - path: .\n",
    b"model:\n  parts:\n    - name: a\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: -x}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: 'a b'}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: " + b"x" * 65 + b"}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: \xc3\xa9}\n",
    b"model:\n  path: m\n  parts:\n    - {path: s, type: .a}\n",
    b'model:\n  path: m\n  parts:\n    - {path: s, type: "a\\n"}\n',
    b"model:\n  path: http://x/y\n",
    b"code:\n  - path: http://x/y\n",
    b"datasets:\n  - path: s3://b/k\n",
    b"docs:\n  - path: file:///etc\n",
    b"model:\n  path: x@sha256:abc\n",
    b"model:\n  path: missing\n",
    b"code:\n  - path: missing\n",
    b"model:\n  path: m/w/x\n",
    b"model:\n  path: pipe\n",
    b"model:\n  path: ' m'\n",
    b"model:\n  path: 'm '\n",
    b'model:\n  path: "a\\0b"\n',
    b'model:\n  path: "m\\x01"\n',
    b"model:\n  path: \xff\n",
    b"model: \x00\n",
    b"model:\n  name: a\x07b\n",
    b"model:\n  path: m\n  license: [MIT]\n",
    b"? [a]\n: b\n",
    b"1: a\n",
    b"model: |\n  path: m\n",
    b"model: ''\n",
    b"code: ''\n",
    b"package: ''\n",
]

REFUSED_BY_US = {
    b"--- \nmodel: {path: m}\n---\nmodel: {path: s}\n": "line 3: more than one document",
    b"model: {path: m}\n--- \n": "line 2: more than one document",
    b"model:\n  parameters: !!binary aGk=\n": "line 2: tag '!!binary' is not supported",
    b"model:\n  parameters: !foo x\n": "line 2: tag '!foo' is not supported",
    b"model:\n  parameters: !!python/name:os.system x\n": "line 2: tag '!!python/name:os.system' is not supported",
    b"model:\n  parameters: !!set {a, b}\n": "line 2: tag '!!set' is not supported",
    b"model:\n  parameters: !!omap [a: 1]\n": "line 2: tag '!!omap' is not supported",
    b"model:\n  path: !foo m\n": "line 2: tag '!foo' is not supported",
    b"model: !foo {path: m}\n": "line 1: tag '!foo' is not supported",
    b"model:\n  path: !!binary bQ==\n": "line 2: tag '!!binary' is not supported",
    b"model:\n  path: ..\n": "line 2: model: path '..' leaves the directory that is packed",
    b"model:\n  path: ../out\n": "line 2: model: path '../out' leaves the directory that is packed",
    b"model:\n  path: m/../../out\n": "line 2: model: path 'm/../../out' leaves the directory that is packed",
    b"code:\n  - path: ../out/o\n": "line 2: code layer 0: path '../out/o' leaves the directory that is packed",
    b"model:\n  path: ../ctx/m\n": "line 2: model: path '../ctx/m' leaves the directory that is packed",
    b"model:\n  path: m\ncode:\n  - path: ./m\n": "line 4: model and code layer 0 use the same path m",
    b"model:\n  path: m\ncode:\n  - path: m/\n": "line 4: model and code layer 0 use the same path m",
    b"model:\n  path: lnk\n": "line 2: lnk is a symbolic link",
    b"model:\n  path: flnk\n": "line 2: flnk is a symbolic link",
    b"model:\n  path: lnk/w\n": "line 2: lnk/w lies behind the symbolic link lnk",
    b"model:\n  path: out\n": "line 2: out is a symbolic link",
    b"model:\n  path: out/passwd\n": "line 2: out/passwd lies behind the symbolic link out",
    b"\xff\xfe{\x00}\x00": "line 1: not UTF-8",
    b"~: a\n": "line 1: the Kitfile: a key is not text",
}


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """The directory that kit was tried in."""
    folder = tmp_path / "ctx"
    (folder / "m/sub").mkdir(parents=True)
    (folder / "s").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("m/w", "m/sub/x", "s/a.py", "README.md", "d..d", "with space", "1", "true", "null", "../out/o"):
        (folder / name).write_text("x")
    for name, target in (("lnk", "m"), ("flnk", "m/w"), ("out", "/etc")):
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe")
    return folder


def refusal(raw: bytes, context: Path) -> str:
    """The message, or nothing when it is taken."""
    (context / "Kitfile").write_bytes(raw)
    try:
        with looking_into(context) as find_problem:
            check_kitfile(raw, find_problem)
    except KitfsError as error:
        return str(error)
    return ""


def test_what_kit_packs_is_taken(context: Path):
    """No Kitfile that kit packs is refused, beyond those that are named."""
    assert {raw: message for raw in ACCEPTED if (message := refusal(raw, context))} == {}


def test_what_kit_refuses_is_refused(context: Path):
    """No Kitfile that kit refuses is taken, and each refusal names a line or says that there is nothing."""
    messages = {raw: refusal(raw, context) for raw in REFUSED}
    assert [raw for raw, message in messages.items() if "line " not in message and "it is empty" not in message] == []


@pytest.mark.parametrize("raw", REFUSED_BY_US)
def test_difference_from_kit_is_refused_with_its_reason(raw: bytes, context: Path):
    """What kit would pack as something else than was meant is refused with its line."""
    assert f"* {REFUSED_BY_US[raw]}" in refusal(raw, context)
