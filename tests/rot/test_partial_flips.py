"""One bit flipped in a partial or its map: readers get right bytes, and the member becomes a right file or none."""

import contextlib
import random
import shutil
import time

import pytest

from kitfs.digest import Digest
from kitfs.errors import KitfsError
from kitfs.layer import finisher
from kitfs.layer.partial_check import check_partials
from kitfs.layer.policy import Materialise
from kitfs.layer.reader import LayerReader
from kitfs.store.findings import FsckReport
from kitfs.store.store import Store

FLIPS = 8
CAMPAIGN_FLIPS = 800


def never(*_):
    """No range may be an error."""
    return False


@pytest.fixture(autouse=True)
def patient_finisher(monkeypatch):
    """Nothing is made a file before a test asks for it."""
    monkeypatch.setattr(finisher, "IDLE_S", 3600.0)
    monkeypatch.setattr(finisher, "PATIENCE_S", 3600.0)


def put_back(specimen, files):
    """The partials as they were, and no member."""
    specimen.drop_members()
    shutil.rmtree(specimen.home / "partial")
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)


def materialise(specimen, rot, layer, number, verdict):
    """Make one member a file, out of its partial; whether there is a right one, or none, then."""
    digest = Digest.of(layer.files[number])
    with rot.fresh_pool(), Store.open(specimen.home) as store:
        path = store.layout.member(digest)
        for _ in range(2):  # the first may find that the partial is wrong, and drop it
            with LayerReader(store, layer.digest, materialise=Materialise.ALWAYS) as reader:
                member = reader.open_member(number)
                with contextlib.suppress(KitfsError):
                    member.materialise()
                if member.read(0, member.size) != layer.files[number]:
                    verdict.silent.append(f"{layer.name}[{number}] once it is a file")
            if path.exists() and Digest.of(path.read_bytes()) != digest:
                verdict.silent.append(f"the file of {layer.name}[{number}]")
        return path.exists() and not list(store.layout.partial.glob(f"*/{layer.digest.hex}.{number}*"))


def find_wrong(store, *, repair=False):
    """Names of the partials that the check finds wrong."""
    report = FsckReport()
    check_partials(store, report, repair=repair)
    assert {finding.damage for finding in report.findings + report.repaired} <= {"wrong-partial"}
    return {finding.name for finding in report.findings}


def name_of(path):
    return f"{path.parent.name}/{path.name.removesuffix('.map')}"


def is_damage(spans, layer, files, path, bit):
    """A span that is not in the file yet can not be wrong, and a byte of the map that became 0 only costs time."""
    if path.suffix == ".map":
        return files[path][bit // 8] ^ 1 << bit % 8 != 0
    offset = layer.index.toc[int(path.name.rpartition(".")[2])].offset
    number = spans.find(offset + bit // 8) - spans.find(offset)
    return files[path.with_name(path.name + ".map")][number] != 0


@pytest.mark.parametrize("what", ["data", "map"])
@pytest.mark.parametrize("name", ["gzip", "gzip by many", "raw gzip"])
def test_a_flip_in_a_partial_is_never_served(rot, specimen, record_verdicts, name, what):
    """What is read back is compared again, what becomes a file is hashed, and a damaged partial is made anew."""
    layer = specimen.layers[name]
    spans = rot.SpanTouch(specimen, layer).spans
    files = specimen.begin_partials(layer)
    chosen = sorted(path for path, data in files.items() if data and path.name.endswith(".map") == (what == "map"))
    assert chosen
    rng = random.Random(f"{name} {what}")
    started_s = time.monotonic()
    verdicts = []
    for number in range(round((CAMPAIGN_FLIPS if rot.CAMPAIGN else FLIPS) * (1 if what == "data" else 0.3))):
        put_back(specimen, files)
        path = rng.choice(chosen)
        bit = rng.randrange(8 * len(files[path]))
        index = int(path.name.removesuffix(".map").rpartition(".")[2])
        flip = rot.Flip(
            what, f"{what} of {name}[{index}], bit {bit}", lambda: None, lambda: None, frozenset(), (), never, [layer],
            materialise=Materialise.ALWAYS,
        )  # fmt: skip
        verdict = rot.Verdict(flip.place)
        rot.flip_bit(path, bit, keeps_mtime=rng.random() < 0.5)
        with Store.open(specimen.home) as store:
            found = find_wrong(store)
            verdict.is_found = found == ({name_of(path)} if is_damage(spans, layer, files, path, bit) else set())
            if number % 3 == 0:
                find_wrong(store, repair=True)
                verdict.is_found &= find_wrong(store) == set()
            if number % 3 <= 1:
                rot.read_layers(store, flip, verdict, rng)
        verdict.is_mended = materialise(specimen, rot, layer, index, verdict)
        verdicts.append(verdict)
    put_back(specimen, {})
    with Store.open(specimen.home) as store:
        assert rot.check(store, read_data=True).problems == []
    record_verdicts(f"partial, {what}, {name}", verdicts, started_s)


def test_partials_of_another_boot_are_not_believed_and_go(rot, specimen):
    """Maps that say more than the data holds, as a power cut leaves them: right bytes, and no old partial is left."""
    layer = specimen.layers["gzip"]
    files = specimen.begin_partials(layer)
    put_back(specimen, {})
    for path, data in files.items():
        old = path.parent.with_name("00000000-0000-4000-8000-000000000000")
        old.mkdir(parents=True, exist_ok=True)
        (old / path.name).write_bytes(data if path.name.endswith(".map") else bytes(len(data)))
    assert specimen.begin_partials(layer) == files
    put_back(specimen, {})
