"""Mount points are completed where a verb takes one."""

import os


def complete(machine, line: str) -> set[str]:
    """What bash is given for a line."""
    machine.environment |= {"_KITFS_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_WORDBREAKS": " \t\n:@="}
    try:
        return set(machine.run().stdout.splitlines()) - {""}
    finally:
        for name in ("_KITFS_COMPLETE", "COMP_WORDS", "COMP_WORDBREAKS"):
            del machine.environment[name]


def test_mount_points_are_completed(machine):
    """umount is offered what is mounted, by place and reference, prefetch also what could be; spaces are escaped."""
    place = machine.mount("a place")
    escaped = f"plain,{os.fspath(place)}".replace(" ", "\\ ")
    assert {escaped, "plain,myllm:1"} <= complete(machine, "kitfs umount ")
    assert complete(machine, f"kitfs umount {machine.folder}/a") == {escaped}
    assert complete(machine, f"kitfs prefetch {machine.folder}/a") == {escaped}
    machine.run("umount", place)
    assert complete(machine, f"kitfs umount {machine.folder}/a") == set()
    assert "plain,myllm:1" in complete(machine, "kitfs prefetch my")  # other tests may have tagged more in this store
