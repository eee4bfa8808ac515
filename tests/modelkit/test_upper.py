"""What is read of an upper directory, and where that ends; what it means is in ``test_merged``."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from kitfs.modelkit.upper import UpperMalformed, UpperUnreadable, read_upper

NOBODY = 65534


def test_directories_inside_each_other(upper):
    """200 at most."""
    deep = upper
    for _ in range(201):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(UpperMalformed, match="more than 200 directories"):
        read_upper(upper)


def test_paths_are_as_long_as_in_a_layer(upper):
    """4096 bytes at most."""
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("n" * 250, dir_fd=fd)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(UpperMalformed, match="more than 4096 bytes"):
        read_upper(upper)


def test_an_upper_directory_that_is_being_written_to(upper):
    """What comes and goes meanwhile is there or not: neither is an error."""
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for number in range(20):
                (upper / str(number) / "in").mkdir(parents=True)
                (upper / str(number) / "in/file").touch()
            for number in range(20):
                shutil.rmtree(upper / str(number))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            assert read_upper(upper).children.keys() <= {str(number).encode() for number in range(20)}
    finally:
        stop.set()
        thread.join()


def test_an_upper_directory_that_is_gone(tmp_path):
    """It is a named error."""
    with pytest.raises(UpperUnreadable, match="not there"):
        read_upper(tmp_path / "gone")


@pytest.mark.root
def test_the_kernels_marks_are_not_taken_for_absent(upper):
    """A user without privilege sees no ``trusted.`` xattr: nothing may be concluded then."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(upper, os.O_RDONLY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            read_upper(Path(f"/proc/self/fd/{fd}"), overlay="overlay")
        except UpperUnreadable:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
