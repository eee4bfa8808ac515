"""Children of several kinds of parent by a user without privilege, over fuse-overlayfs."""

import json
import os
import shutil
import subprocess
import textwrap

import pytest

pytestmark = [pytest.mark.mount, pytest.mark.root]

EDIT = textwrap.dedent("""
    import os, pathlib, sys
    top = pathlib.Path(sys.argv[1])
    if (top / "head").exists():
        with open(top / "head/classifier.bin", "ab") as file:
            file.write(b"more")
    else:
        with open(top / "src/run.sh", "a") as file:
            file.write("more\\n")
        (top / "eval/empty.txt").unlink()
        (top / "eval/new.csv").write_text("1\\n")
    os.utime(top / "model/config.json")
    text = (top / "Kitfile").read_text()
    (top / ".swp").write_text("# edited\\n" + text.replace("manifestVersion: ", "manifestVersion:  "))
    (top / ".swp").rename(top / "Kitfile")
    """)
PARENTS = ["old:1", "myllm:3.1.4-gzip", "registry.example.com:8080/acme/team_a/tuned:1", "pack:1"]


@pytest.fixture
def user(as_nobody, shared_fixtures):
    """The machine, used by a user; it has ModelKits of kit 0.1.0 and 1.7.0, and a ModelPack of one of them."""
    if shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is absent")
    for name in ("kit-v0.1.0", "kit-v1.7.0"):
        copied = as_nobody.folder / name
        shutil.copytree(shared_fixtures / name, copied)
        subprocess.run(["chown", "-R", f"{as_nobody.uid}:{as_nobody.uid}", str(copied)], check=True)
        as_nobody.run("import", copied, "--copy")
        if name == "kit-v0.1.0":
            as_nobody.run("tag", "myllm:3.1.4", "old:1")
    as_nobody.run("unpack", "myllm:3.1.4", "-d", as_nobody.folder / "pack")
    as_nobody.run("pack", as_nobody.folder / "pack", "-t", "pack:1", "--use-model-pack")
    as_nobody.environment["SOURCE_DATE_EPOCH"] = "1700000000"
    return as_nobody


def test_user_commits_over_every_kind_of_parent(user):
    """The child of a staging directory of fuse-overlayfs is the one of the same edit of what unpack wrote."""
    folder = user.folder
    for number, reference in enumerate(PARENTS):
        mnt, work, plain = folder / f"mnt{number}", folder / f"work{number}", folder / f"plain{number}"
        user.python("import os, sys; os.mkdir(sys.argv[1])", mnt)
        before = user.run("inspect", reference).stdout
        user.run("mount", reference, mnt, "--writable", "--staging", work)
        user.python(EDIT, mnt)
        done = json.loads(user.run("commit", mnt, f"child:{number}", "-m", "m", "--format", "json").stdout)
        user.run("umount", mnt)
        user.run("unpack", reference, "-d", plain)
        user.python(EDIT, plain)
        words = ["commit", plain, f"plain:{number}", "-m", "m", "--parent", reference, "--format", "json"]
        assert json.loads(user.run(*words).stdout)["digest"] == done["digest"], reference
        changed = {layer["path"] for layer in done["layers"] if layer["state"] != "unchanged"}
        assert changed == ({"head"} if "tuned" in reference else {"src", "eval"}), reference
        assert user.run("inspect", reference).stdout == before
    assert os.stat(user.home).st_uid == user.uid
    user.run("fsck")
