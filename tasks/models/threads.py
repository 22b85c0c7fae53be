"""How many CPUs this process may use, and how many threads a library takes that does not read OMP_NUM_THREADS by itself."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/proc/self/cgroup")  # Lines of hierarchy:controllers:path, see cgroups(7).
CGROUP_MOUNT = Path("/sys/fs/cgroup")


def cpu_threads(threads: int | None) -> int:
    """Number of threads for a library that runs on the CPU.

    Args:
        threads: the user's choice, or None.

    Returns:
        `threads` if given, else OMP_NUM_THREADS, which the harness sets in its workers, else `usable_cpus()`.
    """
    if threads is not None:
        return threads
    stated = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if stated.isdecimal() and int(stated):
        return int(stated)
    return usable_cpus()


def usable_cpus() -> int:
    """CPUs whose time this process may use: those of its affinity mask, or fewer if a cgroup (v1 or v2) limits their time.

    A quota of one and a half CPUs counts as two, so that no time is left unused.
    """
    quota = min(_cgroup_quotas(), default=math.inf)
    affinity = affinity_cpus()
    return affinity if quota >= affinity else max(1, math.ceil(quota))


def affinity_cpus() -> int:
    """CPUs that this process may be scheduled on; all of the machine where the system has no affinity masks."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_quotas() -> Iterator[float]:
    """CPU quotas, in CPUs, of all cgroups that this process belongs to, and of their parents, which limit it too."""
    try:
        lines = CGROUPS.read_text().splitlines()
    except OSError:  # Only Linux has this file.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUP_MOUNT / "cpu" if controllers else CGROUP_MOUNT  # Only version 1 names controllers.
        group = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted: then the root is the container's own group.
        for folder in [group, *(parent for parent in group.parents if parent.is_relative_to(root))]:
            quota = _quota(folder)
            if quota is not None:
                yield quota


def _quota(folder: Path) -> float | None:
    """The quota of one cgroup in CPUs; None if it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # There is no such file, or it says "max": no limit.
        return None
