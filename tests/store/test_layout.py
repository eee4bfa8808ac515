"""Where a store lies, and which places it refuses."""

import os
import stat
import threading

import pytest

from kitfs.store.errors import StoreNotFound, StoreNotUsable, StoreOwnerMismatch, StoreVersionUnsupported
from kitfs.store.store import Store


def test_new_store_is_private_and_whole(store):
    """The home is 0700 and has every folder, the 256 of each kind of content included."""
    assert stat.S_IMODE(store.home.stat().st_mode) == 0o700
    names = {entry.name for entry in store.home.iterdir()}
    assert names == {
        "version",
        "blobs",
        "recipes",
        "members",
        "partial",
        "ingest",
        "sessions",
        "leases",
        "gc.lock",
        "tags.log",
        "index",
    }
    for kind in ("blobs", "members"):
        assert len(list(store.layout.content(kind).iterdir())) == 256
    assert store.layout.version.read_text() == "1\n"


def test_nothing_in_the_home_is_open_to_others(store, build):
    """No file or folder of a store gives group or others any right, but content is readable."""
    build.kit()
    for path in store.home.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == 0o444 if "sha256" in path.parts and path.is_file() else mode & 0o077 == 0, path


def test_absent_store_is_not_made_unless_asked(store_home):
    """Opening without leave to create leaves no trace."""
    with pytest.raises(StoreNotFound):
        Store.open(store_home, create=False)
    assert not store_home.exists()


def test_folder_with_other_things_is_refused(store_home):
    """A folder that holds somebody's files does not become a store."""
    store_home.mkdir()
    (store_home / "thesis.txt").write_text("mine")
    with pytest.raises(StoreNotUsable, match=r"thesis\.txt"):
        Store.open(store_home)
    assert [entry.name for entry in store_home.iterdir()] == ["thesis.txt"]


def test_file_is_refused(store_home):
    """A file is no store."""
    store_home.write_text("")
    with pytest.raises(StoreNotUsable):
        Store.open(store_home)


@pytest.mark.parametrize("text", ["2", "99999999999999999999", "", "one", "1 1"])
def test_other_format_version_is_refused(store_home, text):
    """A format that is newer, or no number, is refused and named."""
    Store.open(store_home).close()
    (store_home / "version").write_text(text)
    with pytest.raises(StoreVersionUnsupported):
        Store.open(store_home)


@pytest.mark.root
def test_store_of_another_user_is_refused(store_home):
    """A home that belongs to another uid is refused, by root too."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give the store away")
    Store.open(store_home).close()
    os.chown(store_home, 12345, -1)
    with pytest.raises(StoreOwnerMismatch, match="12345"):
        Store.open(store_home)


def test_half_made_store_is_finished(store_home):
    """A home whose making was interrupted, at any folder, is completed by the next opening."""
    Store.open(store_home).close()
    (store_home / "version").unlink()
    (store_home / "leases").rmdir()
    (store_home / "blobs" / "sha256" / "7f").rmdir()
    with Store.open(store_home) as store:
        assert store.layout.leases.is_dir()
        assert (store.layout.content("blobs") / "7f").is_dir()


def test_two_may_make_it_at_once(store_home):
    """Eight threads that open an absent store at once all get it."""
    stores = []
    threads = [threading.Thread(target=lambda: stores.append(Store.open(store_home))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 8
    for store in stores:
        store.close()
