"""Places in a ModelKit: pathlib's words, the standard library's protocol, and nothing outside of the ModelKit."""

import errno
import importlib.resources
import os
from importlib.resources.abc import Traversable

import pytest

import kitfs
from kitfs.api.path import LISTED_MAX

MODEL = "model/model-00001-of-00002.safetensors"


@pytest.fixture
def kit(home):
    with kitfs.open("myllm:3.1.4", home=home) as kit:
        yield kit


def test_path_is_a_traversable(kit, tmp_path):
    """importlib.resources takes a path for one of its own: it makes real files of a file, and of a directory."""
    path = kit / MODEL
    assert isinstance(path, Traversable) and isinstance(kit.files(), Traversable)
    with importlib.resources.as_file(path) as file:
        assert file.read_bytes() == path.read_bytes()


def test_path_is_not_a_path_on_disk(kit):
    """Nothing takes it for a file of that name in the current directory."""
    with pytest.raises(TypeError):
        os.fspath(kit / MODEL)


def test_places_are_joined_as_text(kit):
    """Slashes, dots and double dots do what they do in a path, and lead no further up than the root."""
    assert str(kit.files()) == "." and kit.files().name == "" and kit.files().parent == kit.files()
    for path in (kit / MODEL, kit.files().joinpath("model", "..", "./model//" + MODEL[6:]), kit / "../../x/.." / MODEL):
        assert str(path) == MODEL and path == kit / MODEL and hash(path) == hash(kit / MODEL)
    path = kit / MODEL
    assert (path.name, path.suffix, path.parent) == (MODEL[6:], ".safetensors", kit / "model")
    assert path != MODEL and sorted([kit / "model", kit / "a b", kit / "a"]) == [kit / "a", kit / "a b", kit / "model"]
    assert repr(path) == f"<kitfs.KitPath '{MODEL}' of myllm:3.1.4>"


def test_what_is_there(kit):
    """Files, directories and nothing are told apart; sizes and modes are the packed ones."""
    file, folder, missing = kit / MODEL, kit / "model", kit / "model/nope"
    assert [path.is_file() for path in (file, folder, missing)] == [True, False, False]
    assert [path.is_dir() for path in (file, folder, missing)] == [False, True, False]
    assert [path.exists() for path in (file, folder, missing)] == [True, True, False]
    assert (file.size, folder.size) == (2438224, 0)
    assert ((kit / "src/run.sh").mode, (kit / "adapters/lora.safetensors").mode) == (0o755, 0o600)
    assert {path.name for path in kit.files().iterdir()} >= {"Kitfile", "model", "adapters", "README.md"}
    assert not (kit / ".kitfs").exists()
    assert kit / "eval/résumé naïve.csv" in set((kit / "eval").iter_files())


def test_what_is_wrong_is_an_error_of_pythons_too(kit):
    """Missing files, and directories and files that are taken for each other, are the errors that builtin open has."""
    with pytest.raises(FileNotFoundError) as caught:
        (kit / "nope").open()
    assert caught.value.errno == errno.ENOENT and caught.value.filename == "nope"
    assert isinstance(caught.value, kitfs.KitfsError) and "myllm:3.1.4" in str(caught.value)
    for call, number, kind in [
        ((kit / "model").read_bytes, errno.EISDIR, IsADirectoryError),
        ((kit / "README.md").iterdir().__next__, errno.ENOTDIR, NotADirectoryError),
        (lambda: (kit / "README.md").open("w"), errno.EROFS, OSError),
        (lambda: (kit / "README.md").open("r+b"), errno.EROFS, OSError),
    ]:
        with pytest.raises(kind) as refused:
            call()
        assert refused.value.errno == number and isinstance(refused.value, kitfs.KitfsError)
    for call in (lambda: (kit / "nope").size, (kit / "nope").iterdir().__next__, (kit / "nope").read_text):
        with pytest.raises(FileNotFoundError):
            call()
    with pytest.raises(ValueError, match="invalid mode"):
        (kit / "README.md").open("b")


def test_model_is_found_wherever_it_lies(home):
    """``model`` leads to the model where a mount has a link of that name, and the link is no entry of the root."""
    for reference, place in [("one-file:1", "lora.safetensors"), ("whole:dot", "."), ("myllm:3.1.4", "model")]:
        with kitfs.open(reference, home=home) as kit:
            assert kit.model == kit / place and (kit / "model").exists()
            names = [path.name for path in kit.files().iterdir()]
            assert ("model" in names) == (reference == "myllm:3.1.4")
    with kitfs.open("whole:dot", home=home) as kit:
        assert (kit / "model/Kitfile").read_bytes() == (kit / "Kitfile").read_bytes()
        assert len(list(kit.files().iter_files())) == len(set(kit.files().iter_files())) > 1
    with kitfs.open("empty:0", home=home) as kit:
        assert kit.model is None and [path.name for path in kit.files().iterdir()] == ["Kitfile"]


def test_large_directory_is_listed_once(import_kits, make_layout):
    """A directory of more entries than are looked at in one go has each of them once, in the layer's order."""
    files = {f"{number:05}": b"" for number in range(2 * LISTED_MAX + 1)}
    home = import_kits(make_layout("many", "none", files), "--copy", "--as", "many")
    with kitfs.open("many:1", home=home) as kit:
        assert [path.name for path in (kit / "weights").iterdir()] == list(files)
