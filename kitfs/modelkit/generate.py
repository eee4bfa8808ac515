"""A Kitfile for a folder that has none: what each file is, guessed from its name, as ``kit init`` guesses.

Used by ``kitfs init``. The rules are kit's (kitops ``pkg/lib/kitfile/generate``, 1.7), so that both give one Kitfile
for one folder:

* A file at the top is a readme, a licence, or of the kind that the end of its name says; anything else brings in the
  section ``code: .``, which has all that no other section has.
* Metadata (``.json``, ``.txt`` …) goes with the model as parts, or, without a model, as datasets.
* A folder at the top is docs or code by its name, or whatever all its files are; mixed or deeper ones are code, and
  model files directly in them belong to the model none the less. Deeper folders are not looked into.
* Of several model files the largest is the model when it is larger than one and a half times the average; else the
  first is, and the others are its parts.

Only names and sizes are read, and the licence. Symlinks and special files are passed over, as pack does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from kitfs.errors import KitfsError, NotFoundError
from kitfs.modelkit.entries import META_NAME
from kitfs.modelkit.licenses import LICENSE_SIZE_MAX, find_license
from kitfs.oci.kitfile import KITFILE_NAMES, Code, Dataset, Docs, Kitfile, Model, ModelPart, Package

CODE_FOLDERS_MAX = 5
"""So many folders of unknown kind are sections of their own; more become one, ``code: .``."""


class Kind(Enum):
    """What a file is, by the end of its name."""

    MODEL = 1
    DATASET = 2
    DOCS = 3
    METADATA = 4
    UNKNOWN = 5


SUFFIXES: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind.MODEL,
        (
            *(".safetensors", ".pkl", ".joblib"),
            *(".bin", ".pth", ".pt", ".mar", ".pt2", ".ptl"),  # PyTorch
            *(".pb", ".ckpt", ".tflite", ".tfrecords"),  # TensorFlow
            *(".npy", ".npz"),
            *(".keras", ".h5", ".caffemodel", ".pmml", ".coreml"),
            *(".gguf", ".ggml", ".ggmf", ".llamafile", ".onnx"),
        ),
    ),
    (Kind.METADATA, (".json", ".yaml", ".xml", ".txt")),
    (Kind.DOCS, (".md", ".adoc", ".html", ".pdf")),
    (Kind.DATASET, (".tar", ".zip", ".parquet", ".csv")),
)
"""Kit's table; the case counts."""

CODE_FOLDERS = ("src", "pkg", "lib", "build")
DOCS_FOLDER = "docs"


class FolderNotFound(NotFoundError):
    """There is no folder to make a Kitfile for."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no such directory")
        self.path = path


class FolderUnreadable(KitfsError):
    """A folder, or something in it, that could not be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"reading {path}: {reason}")
        self.path = path


class NameUnusable(KitfsError):
    """A file whose name a Kitfile can not hold, which is UTF-8."""

    hint = "rename it"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name.encode('utf-8', 'surrogateescape')!r} is not UTF-8, so no Kitfile can name it")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    path: str
    size: int

    @property
    def kind(self) -> Kind:
        return next((kind for kind, suffixes in SUFFIXES if self.name.endswith(suffixes)), Kind.UNKNOWN)

    @property
    def stem(self) -> str:
        """The path without its extension; Go's, for which ``.bin`` is nothing but one."""
        dot = self.name.rfind(".")
        return self.path if dot < 0 else self.path[: len(self.path) - len(self.name) + dot]


@dataclass(slots=True)
class _Folder:
    name: str = ""
    files: list[_File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Guess:
    """What has been found so far."""

    models: list[_File] = field(default_factory=list)
    metadata: list[_File] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    docs: list[Docs] = field(default_factory=list)
    unknown_folders: list[str] = field(default_factory=list)
    has_unknown: bool = False
    license: str = ""


@dataclass(frozen=True, slots=True)
class Generated:
    """A Kitfile and what should be said about it.

    Attributes:
        kitfile: It has every section that was found.
        warnings: For people.
    """

    kitfile: Kitfile
    warnings: tuple[str, ...]


def generate(context: Path, package: Package) -> Generated:
    """A Kitfile for all that a folder holds.

    Args:
        context: The folder.
        package: What is known about the ModelKit.

    Raises:
        FolderNotFound, FolderUnreadable: when the folder can not be read.
        NameUnusable: when a section would name what is not UTF-8.
    """
    guess = _Guess()
    warnings: list[str] = []
    top = _list(context, "")
    for file in top.files:
        if _is_license(file):
            guess.license = _read_license(context / file.name)
            if not guess.license:
                warnings.append(f"unable to determine the license in {file.name}")
        _add_file(guess, file)
    for name in top.folders:
        if name != META_NAME:
            _add_folder(guess, _list(context / name, name))
    kitfile = _with_license(_assemble(guess, package), guess.license)
    _check_names(kitfile)
    return Generated(kitfile, tuple(warnings))


def _list(path: Path, name: str) -> _Folder:
    """Regular files and folders, by name."""
    found = _Folder(name)
    try:
        with os.scandir(path) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in ordered:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                found.folders.append(entry.name)
            elif stat.S_ISREG(status.st_mode):
                place = f"{name}/{entry.name}" if name else entry.name
                found.files.append(_File(entry.name, place, status.st_size))
    except (FileNotFoundError, NotADirectoryError):
        raise FolderNotFound(path) from None
    except OSError as error:
        raise FolderUnreadable(path, error.strerror or str(error)) from error
    return found


def _is_license(file: _File) -> bool:
    return file.name.lower().startswith("license")


def _read_license(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            return find_license(stream.read(LICENSE_SIZE_MAX).decode("utf-8", "replace"))
    except OSError as error:
        raise FolderUnreadable(path, error.strerror or str(error)) from error


def _add_file(guess: _Guess, file: _File) -> None:
    """One file at the top."""
    if file.name in KITFILE_NAMES:
        return
    if file.name.lower().startswith("readme"):
        guess.docs.append(Docs(path=file.path, description="Readme file"))
    elif _is_license(file):
        guess.docs.append(Docs(path=file.path, description="License file"))
    elif file.kind is Kind.MODEL:
        guess.models.append(file)
    elif file.kind is Kind.METADATA:
        guess.metadata.append(file)
    elif file.kind is Kind.DOCS:
        guess.docs.append(Docs(path=file.path))
    elif file.kind is Kind.DATASET:
        guess.datasets.append(file.path)
    else:
        guess.has_unknown = True


def _add_folder(guess: _Guess, folder: _Folder) -> None:
    """One folder at the top."""
    if folder.name == DOCS_FOLDER:
        guess.docs.append(Docs(path=folder.name))
        return
    if folder.name in CODE_FOLDERS:
        guess.code.append(folder.name)
        return
    models = [file for file in folder.files if file.kind is Kind.MODEL]
    guess.models += models
    kinds = {file.kind for file in folder.files} - {Kind.METADATA} | ({Kind.UNKNOWN} if folder.folders else set())
    if kinds == {Kind.MODEL}:
        guess.models += [file for file in folder.files if file.kind is Kind.METADATA]
    elif kinds == {Kind.DATASET}:
        guess.datasets.append(folder.name)
    elif kinds == {Kind.DOCS}:
        guess.docs.append(Docs(path=folder.name))
    else:
        guess.unknown_folders.append(folder.name)


def _assemble(guess: _Guess, package: Package) -> Kitfile:
    model = _model(guess.models)
    datasets = list(guess.datasets)
    if model is None:
        datasets += [file.path for file in guess.metadata]
    else:
        model = msgspec.structs.replace(model, parts=(*model.parts, *_parts(guess.metadata)))
    code = guess.code + guess.unknown_folders
    if guess.has_unknown or len(guess.unknown_folders) > CODE_FOLDERS_MAX:
        code = ["."]
    return Kitfile(
        manifest_version="1.0.0",
        package=package,
        model=model,
        code=tuple(Code(path=path) for path in code),
        datasets=tuple(Dataset(path=path) for path in datasets),
        docs=tuple(guess.docs),
    )


def _model(files: list[_File]) -> Model | None:
    if not files:
        return None
    largest = max(files, key=lambda file: file.size)  # the first of those
    average = sum(file.size for file in files) // len(files)
    if len(files) > 1 and largest.size <= average + average // 2:
        return Model(path=files[0].path, parts=_parts(files[1:]))
    others = [file for file in files if file is not largest]
    return Model(path=largest.path, name=largest.stem, parts=_parts(others))


def _parts(files: Iterable[_File]) -> tuple[ModelPart, ...]:
    return tuple(ModelPart(path=file.path) for file in files)


def _with_license(kitfile: Kitfile, name: str) -> Kitfile:
    """With the licence where it says most: the model, else the only dataset, else the only code, else the whole."""
    replace = msgspec.structs.replace
    if not name:
        return kitfile
    if kitfile.model is not None:
        return replace(kitfile, model=replace(kitfile.model, license=name))
    if len(kitfile.datasets) == 1:
        return replace(kitfile, datasets=(replace(kitfile.datasets[0], license=name),))
    if len(kitfile.code) == 1:
        return replace(kitfile, code=(replace(kitfile.code[0], license=name),))
    return replace(kitfile, package=replace(kitfile.package, license=name))


def _check_names(kitfile: Kitfile) -> None:
    for path in _iter_paths(kitfile):
        try:
            path.encode()
        except UnicodeEncodeError:
            raise NameUnusable(path) from None


def _iter_paths(kitfile: Kitfile) -> Iterator[str]:
    if kitfile.model is not None:
        yield kitfile.model.path
        yield from (part.path for part in kitfile.model.parts)
    for entries in (kitfile.code, kitfile.datasets, kitfile.docs):
        yield from (entry.path for entry in entries)
