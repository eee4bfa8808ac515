"""ModelKits go to a real registry and come from it, whole, once, and by the digests that they had."""

import json
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from kitfs.store.fsck import check
from kitfs.store.store import Store

MIB = 1 << 20
HTPASSWD = "me:$2b$04$dvnALeoJnMriUA8WqRUr3e5DIRmhoLvKuW1uIlLBIFDRdXwFXQSse\n"
"""The user ``me`` with the password ``secret word``, by bcrypt."""

MIXED_KITFILE = (
    "manifestVersion: 1.0.0\npackage: {name: mixed}\nmodel: {name: m, path: model}\n"
    "datasets: [{name: d, path: data}]\ndocs: [{path: README.md}]\n"
)


def make_folder(folder: Path, *, size: int = 3 * MIB) -> Path:
    """A model of two files, a dataset of many small ones, and a document."""
    rng = random.Random(size)
    for name in ("model", "data"):
        (folder / name).mkdir(parents=True)
    for name in ("a.bin", "b.bin"):
        (folder / "model" / name).write_bytes(rng.randbytes(size))
    for number in range(50):
        (folder / "data" / f"{number}.txt").write_text(f"{number}\n" * number)
    (folder / "README.md").write_text("read me\n")
    (folder / "Kitfile").write_text(MIXED_KITFILE)
    return folder


def same_tree(folder: Path, other: Path) -> bool:
    """Whether two folders hold the same files, but for the Kitfile, which is written anew."""
    return subprocess.run(["diff", "-r", "-x", "Kitfile", str(folder), str(other)], check=False).returncode == 0


def check_store(node) -> None:
    """Nothing in the store is to be repaired, and no download is left."""
    with Store.open(Path(node.environment["KITFS_HOME"])) as store:
        assert check(store).problems == []
        assert list(store.layout.downloads.glob("*")) == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_what_was_pushed_is_pulled_whole(registry, node, tmp_path, compression):
    """Another machine gets the same ModelKitID and the same files; a second push and pull bring nothing."""
    folder = make_folder(tmp_path / "src")
    name = f"{registry.host}/acme/mixed:1"
    here, there = node("here"), node("there")
    here.run("pack", folder, "-t", name, "--compression", compression)
    pushed = json.loads(here.run("push", name, "--plain-http", "--format", "json").stdout)
    assert pushed["sent"] == 4
    again = json.loads(here.run("push", name, "--plain-http", "--format", "json").stdout)
    assert (again["sent"], again["kept"], again["digest"]) == (0, 4, pushed["digest"])
    assert there.run("pull", name, "--plain-http", "-q").stdout.strip() == pushed["digest"]
    there.run("unpack", name, "-d", tmp_path / "out")
    assert same_tree(folder, tmp_path / "out")
    check_store(there)
    assert there.run("pull", name, "--plain-http").stdout == f"Pulled {pushed['digest']}\n"


def test_blobs_of_another_repository_are_not_sent_again(registry, node, tmp_path):
    """Under a second name in the same registry they are mounted from the first."""
    here = node("here")
    name, other = f"{registry.host}/acme/mixed:1", f"{registry.host}/other/copy:2"
    here.run("pack", make_folder(tmp_path / "src"), "-t", name)
    here.run("push", name, "--plain-http")
    report = json.loads(here.run("push", name, other, "--plain-http", "--format", "json").stdout)
    assert (report["mounted"], report["sent"], report["bytes"]) == (4, 0, 0)
    assert node("there").run("pull", other, "--plain-http", "-q").stdout.strip() == report["digest"]


def test_layers_that_are_known_are_not_fetched(registry, proxy, node, tmp_path):
    """A second ModelKit with one changed layer costs that layer."""
    here, there = node("here"), node("there")
    folder = make_folder(tmp_path / "src")
    here.run("pack", folder, "-t", f"{registry.host}/acme/mixed:1")
    here.run("push", f"{registry.host}/acme/mixed:1", "--plain-http")
    (folder / "README.md").write_text("changed\n")
    here.run("pack", folder, "-t", f"{registry.host}/acme/mixed:2")
    here.run("push", f"{registry.host}/acme/mixed:2", "--plain-http")
    there.run("pull", f"{proxy.host}/acme/mixed:1", "--plain-http")
    assert proxy.size_down > 6 * MIB
    before = proxy.size_down
    there.run("pull", f"{proxy.host}/acme/mixed:2", "--plain-http")
    assert proxy.size_down - before < 64 << 10


def test_killed_pulls_go_on_where_they_were(registry, proxy, node, tmp_path):
    """Killed four times at a fifth of the transfer each: every run goes on, and the last one is right."""
    here, there = node("here"), node("there")
    folder = make_folder(tmp_path / "src", size=24 * MIB)
    name = f"{registry.host}/acme/mixed:1"
    here.run("pack", folder, "-t", name)
    here.run("push", name, "--plain-http")
    name = f"{proxy.host}/acme/mixed:1"
    for number in range(4):
        pulling = there.start("pull", name, "--plain-http", "--concurrency", 1)
        proxy.wait_for((number + 1) * 10 * MIB)
        pulling.send_signal(signal.SIGKILL)
        pulling.wait()
    there.run("pull", name, "--plain-http")
    there.run("unpack", name, "-d", tmp_path / "out")
    assert same_tree(folder, tmp_path / "out")
    assert proxy.size_down < 48 * MIB + 4 * 8 * MIB  # what was in sockets comes again; 88 MiB if nothing were kept
    check_store(there)


def test_killed_push_goes_on_and_shows_nothing_before(registry, proxy, node, tmp_path):
    """Until the last blob is there the tag is not; the same push then sends what is missing."""
    here = node("here")
    folder = make_folder(tmp_path / "src", size=12 * MIB)
    here.run("pack", folder, "-t", f"{proxy.host}/acme/mixed:1")
    pushing = here.start("push", f"{proxy.host}/acme/mixed:1", "--plain-http")
    proxy.wait_for(4 * MIB, is_up=True)
    pushing.send_signal(signal.SIGKILL)
    pushing.wait()
    node("early").run("pull", f"{registry.host}/acme/mixed:1", "--plain-http", status=3)
    report = json.loads(here.run("push", f"{proxy.host}/acme/mixed:1", "--plain-http", "--format", "json").stdout)
    assert report["sent"] >= 1
    assert (
        node("there").run("pull", f"{registry.host}/acme/mixed:1", "--plain-http", "-q").stdout.strip()
        == (report["digest"])
    )


def test_connection_that_breaks_again_and_again_is_taken_up(registry, proxy, node, tmp_path):
    """Each connection ends after 1 MiB: the pull goes on from there, by ranges."""
    here = node("here")
    folder = make_folder(tmp_path / "src", size=4 * MIB)
    here.run("pack", folder, "-t", f"{registry.host}/acme/mixed:1")
    here.run("push", f"{registry.host}/acme/mixed:1", "--plain-http")
    proxy.break_after = MIB
    there = node("there")
    there.run("pull", f"{proxy.host}/acme/mixed:1", "--plain-http")
    there.run("unpack", f"{proxy.host}/acme/mixed:1", "-d", tmp_path / "out")
    assert same_tree(folder, tmp_path / "out")
    assert proxy.size_down < 8 * MIB + 3 * MIB


def test_layer_whose_beginning_promises_a_split_is_kept_whole(registry, node, tmp_path):
    """A large file first and 5000 small ones after it: what was begun split is written whole, and is right."""
    folder = tmp_path / "src"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "0").write_bytes(random.Random(1).randbytes(8 * MIB))
    for number in range(70_000):
        (folder / "model" / f"s{number}").write_bytes(b"")
    (folder / "Kitfile").write_text("manifestVersion: 1.0.0\npackage: {name: m}\nmodel: {name: m, path: model}\n")
    here, there, name = node("here"), node("there"), f"{registry.host}/acme/odd:1"
    here.run("pack", folder, "-t", name)
    here.run("push", name, "--plain-http")
    there.run("pull", name, "--plain-http")
    check_store(there)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["pull", "{host}/acme/mixed:9"], 3),
        (["pull", "{host}/nobody/mixed:1"], 3),
        (["pull", "mixed:1"], 2),
        (["pull", "127.0.0.1:1/acme/mixed:1"], 5),
        (["push", "{host}/acme/mixed:9"], 3),
        (["push", "mixed:1", "mixed:2"], 2),
        (["login", "127.0.0.1:1", "-u", "me", "-p", "x"], 5),
        (["login", "not a host", "-u", "me", "-p", "x"], 1),
    ],
)
def test_what_can_not_be_done_is_said(registry, node, tmp_path, arguments, status):
    """Each has its exit code and a sentence."""
    here = node("here")
    here.run("pack", make_folder(tmp_path / "src", size=1000), "-t", "mixed:1")
    done = here.run(*[text.format(host=registry.host) for text in arguments], "--plain-http", status=status)
    assert done.stderr.startswith("kitfs: ")


def test_skopeo_reads_what_was_pushed(registry, node, tmp_path):
    """Another client copies it to a layout, which is imported under the same ModelKitID."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    here, name = node("here"), f"{registry.host}/acme/mixed:1"
    here.run("pack", make_folder(tmp_path / "src"), "-t", name)
    digest = here.run("push", name, "--plain-http", "-q").stdout.strip()
    copy = ["skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/layout:1"]
    subprocess.run(copy, check=True, capture_output=True)
    assert digest in node("there").run("import", tmp_path / "layout").stdout


def test_registry_with_tls_and_passwords(start_registry, node, tmp_path):
    """With a certificate of its own and htpasswd: refused without, let in after login, and out after logout."""
    certificate(tmp_path)
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registry = start_registry(
        f"  tls: {{certificate: {tmp_path}/cert.pem, key: {tmp_path}/key.pem}}\n"
        f"auth:\n  htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}\n"
    )
    here, name = node("here"), f"{registry.host}/acme/mixed:1"
    trust = ["--tls-cert", tmp_path / "cert.pem"]
    here.run("pack", make_folder(tmp_path / "src"), "-t", name)
    assert "certificate" in here.run("push", name, status=5).stderr
    assert f"kitfs login {registry.host}" in here.run("push", name, *trust, status=4).stderr
    here.run("login", registry.host, "-u", "me", "--password-stdin", *trust, stdin="wrong\n", status=4)
    assert not (here.folder / "config/kitfs/credentials.json").exists()
    here.run("login", registry.host, "-u", "me", "--password-stdin", *trust, stdin="secret word\n")
    kept = here.folder / "config/kitfs/credentials.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    digest = here.run("push", name, *trust, "-q").stdout.strip()
    there = node("there")
    there.run("pull", name, *trust, status=4)
    (there.folder / ".docker").mkdir()
    (there.folder / ".docker/config.json").write_text(kept.read_text())
    assert there.run("pull", name, "--no-tls-verify", "-q").stdout.strip() == digest
    here.run("logout", registry.host)
    here.run("push", name, *trust, status=4)
    assert "secret word" not in "".join(
        path.read_text(errors="replace") for path in (here.folder / "store").rglob("*") if path.is_file()
    )


def certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"),
                    "-out", str(folder / "cert.pem")], check=True, capture_output=True)  # fmt: skip
