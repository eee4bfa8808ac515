"""Layer digests that kit 1.7.0 gave for one awkward tree; each was read from the manifest that it wrote."""

import os
from pathlib import Path

from kitfs.modelkit.pack import pack
from kitfs.oci.manifest import parse_manifest
from kitfs.store.store import Store

KITFILE = """\
manifestVersion: 1.0.0
package:
  name: awkward
model:
  name: main
  path: ./model//
  parts:
    - {name: adapter, path: model/part1}
    - {name: deep, path: model/part1/inner/./adapter.bin}
    - {name: spaced, path: "model/with space"}
code:
  - path: .
  - path: tools/-dash
datasets:
  - {name: in code, path: tools/data/}
  - {name: unicode, path: "データ"}
docs:
  - path: README.md
  - path: tools/docs
"""

IGNORE = (
    b"\xef\xbb\xbf# what a build leaves behind\r\n"
    b"**/*.tmp   \r\n"
    b"\t*.log\r\n"
    b"\r\n"
    b" # not a comment\r\n"
    b"model/cache/**\r\n"
    b"!model/cache/keep/**\r\n"
    b"**/__pycache__\r\n"
    b"scratch/*\r\n"
    b"!  scratch/kept\r\n"
    b"/rooted\r\n"
    b"tools/data/[a-c]?.bin\r\n"
    b"\\#literal\r\n"
    b"!**/important.tmp"
)

LONG = {length: f"{length}-".ljust(length, "n") for length in (99, 100, 101, 155, 156, 255)}

FILES = {
    **{f"model/size-{size}": size for size in (0, 1, 511, 512, 513, 1024, 10_240)},
    **{f"model/{name}": 5 for name in LONG.values()},
    f"deep/{LONG[155]}/{LONG[100]}": 6,
    f"deep/{LONG[156]}/{LONG[99]}": 6,
    f"{LONG[99]}/{LONG[101]}/{LONG[255]}/w": 7,
    "model/" + "é" * 40 + "/utf8": 8,
    "model/cafe\u0301": 1,
    "model/café": 2,
    "model/日本語/重み.bin": 3,
    "model/with space/ lead": 1,
    "model/with space/trail ": 2,
    "model/new\nline": 3,
    "model/tab\there": 3,
    "model/quote'\"\\": 3,
    "model/12 path=x": 3,
    "model/Kitfile": 4,
    "model/.kitignore": 4,
    "model/part1/a": 9,
    "model/part1/inner/b": 9,
    "model/part1/inner/adapter.bin": 900,
    "model/cache/one": 1,
    "model/cache/keep/two": 2,
    "sub/x": 1,
    "sub-x": 1,
    "sub.d/x": 1,
    "tools/-dash/--help": 3,
    "tools/data/a1.bin": 10,
    "tools/data/d1.bin": 11,
    "tools/data/ab.tmp": 12,
    "tools/data/important.tmp": 13,
    "tools/data/__pycache__/x.pyc": 14,
    "tools/docs/index.md": 15,
    "tools/main.py": 16,
    "tools/trace.log": 17,
    "tools/late.tmp ": 17,
    "データ/列.csv": 18,
    "scratch/gone": 1,
    "scratch/kept": 2,
    "rooted": 1,
    "#literal": 1,
    "# not a comment": 1,
    "important.tmp": 1,
    "root.log": 1,
    "README.md": 19,
    "kitfile": 1,
    ".hidden/.file": 1,
}

MODES = {
    "model/size-1": 0o600,
    "model/size-511": 0o4755,
    "model/size-512": 0o2755,
    "model/size-513": 0o6777,
    "model/size-1024": 0o400,
    "model/size-10240": 0o1644,
    "model/part1": 0o700,
    "model/cache/keep": 0o2775,
    "tools": 0o1777,
    "sub.d": 0o500,
}

DIGESTS = [
    "2472154148ddbb5ab34e936bfab31ac7ffb66661582febba17258ab54672846b",
    "21a93281343e05da3ac37e738a0a021f5c756781c873ff06b4f9a6727ff17ff2",
    "fc9c719b7b068f3aaa6a030b28b0030d1b9202578f5d91bf5037742c0d9447f8",
    "11dbf1dca06467dce2d8d4b5f58f8c2c9b27971163e82fd8bce52d96f1c7d809",
    "c6a91a2d5f946e018892c1724161c5e6879ff1934d56c03467d133712ec30b91",
    "ada3f965a6aa48a831193380bcbae3701f2ae9aecf30c939ecb2e4b9ccc6d070",
    "88550c0b1fc75a9107cef3211c9197b59d43b23b1e81f9703e6b44e8e61109c4",
    "589414cd50a2b67545c8138bb8b42e0ec4344d69423874c6067aa18622d29526",
    "4c59875a8a6da08a23d9c30f90febcf37c1d3706fe368c0770f5775afb34f8a0",
    "1294b35d3868a5fc5817f56c619827c292a173b3e14fd8384584faaea74f8807",
]


def content(name: str, size: int) -> bytes:
    """Bytes that depend on the name, without a library's random numbers."""
    seed = os.fsencode(name)
    return bytes((seed[place % len(seed)] + place) % 256 for place in range(size))


def make_awkward(folder: Path) -> Path:
    """The tree, the same to the last bit whoever makes it, whatever the umask."""
    folder.mkdir()
    for name, size in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name, size))
    (folder / "model/empty").mkdir()
    (folder / "Kitfile").write_text(KITFILE)
    (folder / ".kitignore").write_bytes(IGNORE)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "model/link").symlink_to("size-1")
    (folder / "tools/out").symlink_to("/etc")
    os.mkfifo(folder / "tools/pipe")
    for name, mode in MODES.items():
        (folder / name).chmod(mode)
    return folder


def test_awkward_tree_has_kits_layer_digests(store: Store, tmp_path: Path):
    """Unusual names, modes and sizes, nested entries and a hard .kitignore: kit's digests, layer by layer."""
    manifest = parse_manifest(store.read_blob(pack(store, make_awkward(tmp_path / "kit"), None, [])))
    assert [layer.digest.hex for layer in manifest.layers] == DIGESTS


def test_what_kit_loses_is_packed(store: Store, tmp_path: Path):
    """kit 1.7 leaves out names with two dots, and data-v2 beside data; here every file is in one layer."""
    folder = tmp_path / "kit"
    for name in ("data/a", "data-v2/b", "data-v2.csv", "w..bin", "x../y", "..z"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "Kitfile").write_text("model: {path: .}\ndatasets:\n  - path: data\n")
    manifest = parse_manifest(store.read_blob(pack(store, folder, None, [])))
    found = [[member.path for member in store.get_toc(layer.digest) if member.digest] for layer in manifest.layers]
    assert found == [[b"..z", b"data-v2/b", b"data-v2.csv", b"w..bin", b"x../y"], [b"data/a"]]
