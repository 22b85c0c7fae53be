"""How many CPUs a process may use: those of its affinity mask, or fewer if a CPU quota of its cgroups limits them."""

import os

import pytest

from icmbench.tasks.models import threads


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Write memberships and quota files of cgroups on a machine where this process may be scheduled on eight CPUs."""
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "CGROUP_MOUNT", tmp_path / "mount")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def write(memberships, files):
        (tmp_path / "cgroup").write_text(memberships)
        for name, text in files.items():
            path = tmp_path / "mount" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("memberships", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/docker/1234\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "damaged\n"}, 8),
        (
            "4:memory:/x\n1:cpu,cpuacct:/\n",
            {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000"},
            5,
        ),
        ("1:cpu:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/\n", {"cpuset/cpu.max": "100000 100000"}, 8),
    ],
    ids=[
        "v2",
        "v2 without limit",
        "rounded up",
        "at least one",
        "more than eight",
        "parent",
        "path of the host",
        "damaged",
        "v1",
        "v1 without limit",
        "not a cpu controller",
    ],
)
def test_usable_cpus_are_cut_by_the_cgroup_quota(cgroup, memberships, files, cpus):
    cgroup(memberships, files)
    assert threads.usable_cpus() == cpus
    assert threads.affinity_cpus() == 8


def test_threads_are_the_argument_or_omp_num_threads_or_the_usable_cpus(cgroup, monkeypatch):
    cgroup("0::/\n", {"cpu.max": "300000 100000\n"})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.cpu_threads(5) == 5
    assert threads.cpu_threads(None) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert threads.cpu_threads(None) == 2


def test_without_cgroups_the_affinity_mask_decides(cgroup):
    assert threads.usable_cpus() == 8
