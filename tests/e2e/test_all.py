"""`kitfs mount --all`: the whole store as folders, following its tags."""

import os
import time
from pathlib import Path

import pytest

FOLLOW_S = 10


@pytest.fixture
def everything(kitfs, shared_fixtures) -> Path:
    """The whole store, mounted."""
    kitfs.run("import", shared_fixtures / "kit-v1.7.0", "--copy")
    return kitfs.mount("--all")


def wait_for(condition) -> bool:
    """Poll what another process changes until it holds; the kernel may believe a name for a second."""
    end = time.monotonic() + FOLLOW_S
    while time.monotonic() < end:
        if condition():
            return True
        os.sched_yield()
    return False


def test_repositories_and_tags_are_folders(everything):
    """Components are folders, `localhost/` is not shown."""
    assert sorted(os.listdir(everything)) == ["empty", "myllm", "one-file", "registry.example.com:8080", "whole"]
    assert sorted(os.listdir(everything / "myllm")) == ["3.1.4", "3.1.4-fast", "3.1.4-gzip", "latest"]
    assert (everything / "myllm/3.1.4/model/vocab.txt").stat().st_size == 231_508
    assert (everything / "myllm/3.1.4-gzip/src/run.sh").read_text().startswith("#!")


def test_a_new_tag_shows_up_and_a_removed_one_goes(kitfs, everything):
    """Tags added or removed meanwhile are seen without a remount."""
    kitfs.run("tag", "myllm:3.1.4", "myllm/deeper:new")
    assert wait_for(lambda: (everything / "myllm/deeper/new/Kitfile").exists())
    kitfs.run("remove", "myllm/deeper:new")
    assert wait_for(lambda: not (everything / "myllm/deeper/new").exists())


def test_a_moved_tag_is_a_new_folder_and_the_open_one_stays(kitfs, everything):
    """After a move the path shows the new ModelKit; a folder that is open shows the old one."""
    before = os.stat(everything / "myllm/latest").st_ino
    held = os.open(everything / "myllm/latest", os.O_RDONLY)
    try:
        kitfs.run("tag", "one-file:1", "myllm:latest")
        assert wait_for(lambda: os.stat(everything / "myllm/latest").st_ino != before)
        assert wait_for(lambda: (everything / "myllm/latest/lora.safetensors").exists())
        descriptor = os.open("README.md", os.O_RDONLY, dir_fd=held)
        assert len(os.read(descriptor, 100)) == 35
        os.close(descriptor)
    finally:
        os.close(held)


def test_a_tag_beside_a_deeper_repository_gets_a_colon(kitfs, everything):
    """Where a tag and a component have one name, the component keeps it."""
    kitfs.run("tag", "myllm:3.1.4", "myllm/latest:x")
    assert wait_for(lambda: (everything / "myllm/:latest/Kitfile").exists())
    assert (everything / "myllm/latest/x/Kitfile").exists()
