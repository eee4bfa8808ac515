"""The numbers of a daemon in Prometheus's text form. The only module that knows prometheus-client.

Everything is taken from one ``StatusAnswer`` and from the disk that the store lies on: nothing is counted here, so
nothing can go backwards that does not there. Counters are those of a session, over all its workers, and end with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from kitfs.calls import MountState, StatusAnswer

LABELS = ("session", "reference", "mountpoint")

_Value = Callable[[MountState], float]

_COUNTERS: dict[str, tuple[str, _Value]] = {
    "kitfs_worker_restarts": ("Workers of a mount that were replaced", lambda one: one.restarts),
    "kitfs_read_requests": ("READ requests that workers answered", lambda one: one.reads),
    "kitfs_read_bytes": ("Bytes that workers answered READ requests with", lambda one: one.bytes_read),
    "kitfs_opens": ("Files of a mount that were opened", lambda one: one.opens),
    "kitfs_lookups": ("Names of a mount that were looked up", lambda one: one.lookups),
    "kitfs_request_errors": ("Requests that failed because something is broken", lambda one: one.errors),
    "kitfs_spans_decoded": ("Spans of compressed layers that were decoded", lambda one: one.spans_decoded),
}
"""Name without ``_total``, which is appended, to its help and its value."""

_GAUGES: dict[str, tuple[str, _Value]] = {
    "kitfs_native_ratio": ("Share of a mount's bytes that are plain files in the store", lambda one: one.native),
    "kitfs_passthrough_files": ("Open files that the kernel reads by itself", lambda one: one.passed_through),
    "kitfs_mount_served": ("1 while a worker serves the mount", lambda one: one.state != "starting"),
    "kitfs_mount_uptime_seconds": ("For how long the mount has been served", lambda one: one.uptime_s),
}


class _Collector:
    def __init__(self, status: StatusAnswer, home: Path) -> None:
        self._status = status
        self._home = home

    def collect(self) -> Iterator[Any]:
        """Each metric with its samples."""
        status = self._status
        yield InfoMetricFamily("kitfs_build", "Version of the daemon", value={"version": status.version})
        yield GaugeMetricFamily("kitfs_start_time_seconds", "When the daemon started", value=status.started_s)
        yield GaugeMetricFamily("kitfs_mounts", "Mounts that the daemon serves", value=len(status.mounts))
        yield GaugeMetricFamily("kitfs_degraded", "What does not work as it should", value=len(status.degraded))
        yield CounterMetricFamily("kitfs_zygote_restarts", "Zygotes that were replaced", value=status.zygote_restarts)
        yield from self._measure_disk()
        for kinds, metrics in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
            for name, (text, value) in metrics.items():
                family = kinds(name, text, labels=LABELS)
                for state in status.mounts:
                    family.add_metric([state.session, state.reference, state.mountpoint], value(state))
                yield family

    def _measure_disk(self) -> Iterator[Any]:
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._home)
            free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            yield GaugeMetricFamily("kitfs_disk_free_bytes", "Free bytes of the store's file system", value=free)
            yield GaugeMetricFamily("kitfs_disk_size_bytes", "Size of the store's file system", value=size)


def encode_metrics(status: StatusAnswer, home: Path, accepted: str) -> tuple[str, bytes]:
    """Media type and text of all metrics. Blocks as ``statvfs`` does.

    Args:
        status: How the daemon is.
        home: The store's folder.
        accepted: What the reader said that it accepts, as in HTTP.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status, home))
    encode, kind = choose_encoder(accepted)
    return kind, encode(registry)
