"""How many CPU threads a library takes that does not read OMP_NUM_THREADS by itself."""

from __future__ import annotations

import os


def cpu_threads(threads: int | None) -> int:
    """`threads` if given, else OMP_NUM_THREADS, which the harness sets in its workers, else the cores of this process."""
    if threads is not None:
        return threads
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if stated.isdecimal() and int(stated):
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
