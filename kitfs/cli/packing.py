"""Verb ``pack``: a directory and its Kitfile into a ModelKit in the store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kitfs.cli.environment import source_date_epoch
from kitfs.cli.output import print_json, print_result, warn
from kitfs.cli.progress import show_progress
from kitfs.cli.settings import Settings, verb


@verb("pack", short_help="Pack a directory and its Kitfile into a ModelKit.",
      examples=["kitfs pack . -t myllm:3.1.4,latest", "kitfs pack . -f ../Kitfile -t myllm:3.1.4 --compression zstd"],
)  # fmt: skip
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-f", "--file", "kitfile", help="The Kitfile (- for standard input); default: the one in DIRECTORY.")
@click.option("-t", "--tag", "tags", multiple=True, metavar="REF[,TAG…]", help="Name and tags for the result.")
@click.option(
    "--compression",
    type=click.Choice(["none", "gzip", "gzip-fastest", "zstd"]),
    default="none",
    show_default=True,
    help="How layers are compressed.",
)
@click.option(
    "--layer-format",
    type=click.Choice(["tar", "raw"]),
    default="tar",
    show_default=True,
    help="raw: each layer is the bytes of one file.",
)
@click.option("--use-model-pack", is_flag=True, help="Write a ModelPack artifact instead of a ModelKit.")
def pack(
    settings: Settings,
    directory: Path,
    kitfile: str | None,
    tags: tuple[str, ...],
    compression: str,
    layer_format: str,
    use_model_pack: bool,
) -> None:
    """Pack DIRECTORY into a ModelKit.

    Prints the ModelKitID. Layers are plain tar, byte for byte as kit packs them, unless told otherwise; those that the
    store has are not written again. SOURCE_DATE_EPOCH sets the creation time that is recorded.
    """
    from kitfs.layer.compress import PackCompression
    from kitfs.modelkit import pack as packing
    from kitfs.modelkit.pack_options import PackOptions
    from kitfs.oci.mediatype import LayerFormat
    from kitfs.oci.reference import parse_references

    references = [reference for text in tags for reference in parse_references(text)]
    options = PackOptions(PackCompression(compression), LayerFormat(layer_format), use_model_pack)
    created_s = source_date_epoch()
    raw = _read_standard_input() if kitfile == "-" else None
    path = None if kitfile in (None, "-") else Path(str(kitfile))
    with settings.open_store() as store, show_progress(settings.progress) as progress:
        digest = packing.pack(
            store,
            directory,
            path,
            references,
            options=options,
            kitfile_raw=raw,
            created_s=created_s,
            progress=progress,
            warn=warn,
        )
    if settings.json:
        print_json({"digest": str(digest), "references": [str(reference) for reference in references]})
    else:
        print_result(str(digest) if settings.quiet else f"Model saved: {digest}")


def _read_standard_input() -> bytes:
    from kitfs.oci.kitfile import KITFILE_SIZE_MAX

    if sys.stdin.isatty():
        raise click.UsageError("-f - reads the Kitfile from standard input, which is a terminal")
    return sys.stdin.buffer.read(KITFILE_SIZE_MAX + 1)
