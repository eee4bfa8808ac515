"""Real Kitfiles and random ones."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pytest


class RealKitfile(NamedTuple):
    """A ModelKit that a version of kit packed, and what kit's unpack made of its Kitfile."""

    name: str
    config: bytes
    unpacked_sha256: str


def _blob(folder: Path, digest: str) -> bytes:
    return next(folder.rglob(digest.removeprefix("sha256:"))).read_bytes()


def _tags(folder: Path) -> dict[str, str]:
    """Names of files in ``expected`` to manifest digests, in both layouts of kit's storage."""
    found = {}
    for path in folder.rglob("*-tags.json"):
        repository = base64.urlsafe_b64decode(path.name.removesuffix("-tags.json")).decode().removeprefix("localhost/")
        for tag, descriptor in json.loads(path.read_text()).items():
            found[f"{repository}:{tag}"] = descriptor["digest"]
    for path in folder.glob("storage/localhost/*/index.json"):
        for descriptor in json.loads(path.read_text())["manifests"]:
            found[f"{path.parent.name}:{descriptor['annotations']['org.opencontainers.image.ref.name']}"] = descriptor[
                "digest"
            ]
    return {name.replace("/", "_").replace(":", "_"): digest for name, digest in found.items()}


@pytest.fixture(scope="session")
def real_kitfiles(shared_fixtures: Path) -> list[RealKitfile]:
    """All that kit 0.1.0 to 1.7.0 packed."""
    found = []
    for folder in sorted(shared_fixtures.glob("kit-*")):
        for name, digest in sorted(_tags(folder).items()):
            expected = folder / "expected" / f"{name}.json"
            if expected.exists():
                sums = {entry["path"]: entry.get("sha256") for entry in json.loads(expected.read_text())}
                config = _blob(folder, json.loads(_blob(folder, digest))["config"]["digest"])
                found.append(RealKitfile(f"{folder.name} {name}", config, sums["Kitfile"]))
    assert len(found) == 12
    return found


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
