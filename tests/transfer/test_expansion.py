"""What compressed layers may decode to beyond the usual, and that an import's layers share it."""

import os

import pytest

from kitfs.transfer.expansion import EXPANSION_MAX, Expansion

GIB = 1 << 30


def test_layers_share_what_is_left(tmp_path):
    """What a layer needs beyond 256 MiB and 256 times its size is gone for the next; what is usual costs nothing."""
    expansion = Expansion(tmp_path, 2 * GIB)
    assert expansion.limits().free_size == GIB // 4 + 2 * GIB
    expansion.spend(100, GIB // 4)
    expansion.spend(GIB, 200 * GIB)
    assert expansion.limits().free_size == GIB // 4 + 2 * GIB
    expansion.spend(0, GIB // 4 + GIB)
    assert expansion.limits().free_size == GIB // 4 + GIB
    expansion.spend(0, 50 * GIB)
    assert expansion.limits().free_size == GIB // 4


@pytest.mark.parametrize("wanted", [EXPANSION_MAX, 1 << 60])
def test_the_disk_bounds_it(tmp_path, wanted):
    """No more is admitted than the disk of the store could take."""
    before = os.statvfs(tmp_path)
    allowed = Expansion(tmp_path, wanted).limits().free_size
    assert GIB // 4 <= allowed <= max(before.f_bavail * before.f_frsize * 2, GIB)
    assert allowed <= GIB // 4 + wanted
