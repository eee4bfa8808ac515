"""``kitfs pack``: what is printed, what is set, and what is refused."""

import io
import os
from pathlib import Path

import pytest


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    (folder / "m").mkdir(parents=True)
    (folder / "m/w.bin").write_bytes(b"w" * 3000)
    (folder / "m/w.bin").chmod(0o644)
    (folder / "m").chmod(0o755)
    (folder / "Kitfile").write_text("manifestVersion: 1.0.0\npackage:\n  authors: [a]\nmodel:\n  path: m\n")
    return folder


def test_pack_prints_what_kit_prints(kitfs, kit, monkeypatch):
    """The result goes to standard output, progress and warnings do not; tags share one ModelKitID."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    done = kitfs("pack", kit, "-t", "myllm:1,latest", "--tag", "x.example.com/y:2")
    assert done.code == 0
    digest = done.out.removeprefix("Model saved: ").strip()
    assert done.out == f"Model saved: {digest}\n" and digest.startswith("sha256:")
    assert "model m" in done.err
    listed = [(line.split()[0], line.split()[1], line.split()[-1]) for line in kitfs("list").out.splitlines()[1:]]
    assert sorted(listed) == [("myllm", "1", digest), ("myllm", "latest", digest), ("x.example.com/y", "2", digest)]
    assert kitfs("-q", "pack", kit, "-t", "z").out == f"{digest}\n"
    assert kitfs("pack", kit, "--format", "json", "-t", "z").json == {
        "digest": digest,
        "references": ["localhost/z:latest"],
    }


def test_kitfile_comes_from_a_file_or_standard_input(kitfs, kit, monkeypatch, tmp_path):
    """-f names another Kitfile, and - is standard input; both give the same layers."""
    other = tmp_path / "Other"
    other.write_bytes((kit / "Kitfile").read_bytes())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = kitfs("-q", "pack", kit, "-f", other)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(other.read_bytes())))
    second = kitfs("-q", "pack", kit, "-f", "-")
    assert first.code == second.code == 0
    assert first.out == second.out


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["-t", "A:1"], {}, 1, "malformed reference 'A:1': repository names are lower case"),
        (["-t", "a:1,.b"], {}, 1, "is not a tag"),
        (["-t", f"a@sha256:{'0' * 64}"], {}, 2, "only a tag can be set"),
        (["-f", "nowhere"], {}, 3, "no Kitfile: nowhere: No such file or directory"),
        ([], {"SOURCE_DATE_EPOCH": "1.5"}, 2, "SOURCE_DATE_EPOCH='1.5': expected seconds"),
        ([], {"SOURCE_DATE_EPOCH": "-1"}, 2, "SOURCE_DATE_EPOCH='-1'"),
        ([], {"SOURCE_DATE_EPOCH": "999999999999"}, 2, "out of range"),
    ],
)
def test_bad_request_is_refused_and_nothing_is_set(kitfs, kit, monkeypatch, arguments, environment, code, message):
    """The exit code and the message say what is wrong; no ModelKit appears."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = kitfs("pack", kit, *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(kitfs("list").out.splitlines()) == 1


def test_paths_that_are_missing_are_all_named(kitfs, kit):
    """One message lists every path of the Kitfile that is not there, with its line."""
    (kit / "Kitfile").write_text("model:\n  path: x\ncode:\n  - path: y\nmcpServers:\n  - {name: a, path: m.mcpb}\n")
    (kit / "m.mcpb").mkdir()
    done = kitfs("pack", kit)
    assert done.code == 2
    assert (
        "  * line 2: x does not exist\n  * line 4: y does not exist\n"
        "  * line 6: m.mcpb is a directory, and a raw layer is the bytes of one file\n"
    ) in done.err


def test_all_that_is_wrong_with_a_kitfile_is_one_message(kitfs, kit, tmp_path):
    """Notation, rules and paths on disk come together, each with its line, from -f too."""
    other = tmp_path / "Other"
    other.write_text("model:\n  path: x\n  nme: a\ncode:\n  - path: ../kit/m\n  - path: m\ndocs:\n  - path: ./m\n")
    done = kitfs("pack", kit, "-f", other)
    assert (done.code, done.out) == (1, "")
    assert [line for line in done.err.splitlines() if line.startswith("  * ")] == [
        "  * line 2: x does not exist",
        "  * line 3: unknown key 'model.nme'",
        "  * line 5: code layer 0: path '../kit/m' leaves the directory that is packed",
        "  * line 8: code layer 1 and docs layer 0 use the same path m",
    ]


def test_directory_may_be_the_current_one(kitfs, kit, monkeypatch):
    """``kitfs pack .`` packs where one stands, and stays there."""
    monkeypatch.chdir(kit)
    assert kitfs("pack", ".").code == 0
    assert Path(os.getcwd()) == kit
