"""``kitfs init``: a Kitfile for a folder, in kit's words."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kitfs.cli.output import print_json, print_result, warn
from kitfs.cli.settings import Settings, verb
from kitfs.errors import KitfsError

if TYPE_CHECKING:
    from kitfs.oci.kitfile import Package


class KitfileExists(KitfsError):
    """There is a Kitfile, which is not to be lost by mistake."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"Kitfile already exists at {path}. Use '--force' to overwrite")
        self.path = path


@verb("init", short_help="Generate a Kitfile for the contents of a directory.",
      examples=["kitfs init .", 'kitfs init ./my-model --name my-model --desc "What it is"'])  # fmt: skip
@click.argument("directory", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name for the ModelKit.")
@click.option("--desc", "description", default="", help="Description for the ModelKit.")
@click.option("--author", default="", help="Author for the ModelKit.")
@click.option("-f", "--force", is_flag=True, help="Overwrite existing Kitfile if present.")
def init(settings: Settings, directory: Path, name: str, description: str, author: str, force: bool) -> None:
    """Examine the contents of the directory PATH and generate a basic Kitfile in it, based on common file formats.

    Files whose type (model, dataset …) can not be determined are included in a code layer. On a terminal the name,
    description and author that no option gives are asked for. Prints the Kitfile and where it was saved.
    """
    from kitfs.modelkit.generate import generate
    from kitfs.oci.kitfile import encode_kitfile_yaml

    path = directory / "Kitfile"
    if path.exists() and not force:
        raise KitfileExists(path)
    generated = generate(directory, _ask(name, description, author))
    for warning in generated.warnings:
        warn(warning)
    raw = encode_kitfile_yaml(generated.kitfile)
    _write(path, raw)
    if settings.json:
        print_json({"path": str(path), "kitfile": raw.decode()})
    elif settings.quiet:
        print_result(str(path))
    else:
        print_result(f"Generated Kitfile:\n\n{raw.decode()}\nSaved to path '{path}'")


def _ask(name: str, description: str, author: str) -> Package:
    """What the ModelKit is called, asked for where it is not given and somebody can answer."""
    from kitfs.oci.kitfile import Package

    if sys.stdin.isatty():
        name = name or _prompt("Enter a name for the ModelKit: ")
        description = description or _prompt("Enter a short description for the ModelKit: ")
        author = author or _prompt("Enter an author for the ModelKit: ")
    return Package(name=name, description=description, authors=(author,) if author else ())


def _prompt(text: str) -> str:
    answer: str = click.prompt(text, default="", show_default=False, prompt_suffix="", err=True)
    return answer.strip()


def _write(path: Path, raw: bytes) -> None:
    """Put the whole file in place, or leave what was there."""
    scratch = path.with_name(f".Kitfile-{secrets.token_hex(8)}")
    try:
        scratch.write_bytes(raw)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
