"""Shared fixtures. Benchmarks run alternatives in turns in one session, and print wall seconds, processor seconds and their ratios.

Processor seconds include all threads and the child processes that have ended; they hardly depend on what else the machine does.
"""

import os
import resource
import statistics
import time
from dataclasses import dataclass

import pytest
import yaml


@dataclass(frozen=True)
class Duration:
    """Wall and processor seconds, or their ratios."""

    wall: float
    cpu: float

    def ratio_to(self, base):
        return Duration(self.wall / base.wall, self.cpu / base.cpu)


def cpu_seconds():
    """Processor seconds of this process and of its ended children."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def timed(call):
    """The duration of a call."""
    start = time.perf_counter(), cpu_seconds()
    call()
    return Duration(time.perf_counter() - start[0], cpu_seconds() - start[1])


@pytest.fixture
def in_turns():
    """Runs alternatives in turns, prints their durations, and returns each one's ratio to the first, a median over the turns."""

    def measure(title, runs, repeats=3):
        turns = [{name: timed(run) for name, run in runs.items()} for _ in range(repeats)]
        base = next(iter(runs))
        ratios = {}
        print(f"\n{title} ({repeats} turns, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
        for name in runs:
            turn_ratios = [turn[name].ratio_to(turn[base]) for turn in turns]
            walls, cpus = [ratio.wall for ratio in turn_ratios], [ratio.cpu for ratio in turn_ratios]
            ratios[name] = Duration(statistics.median(walls), statistics.median(cpus))
            least = Duration(min(turn[name].wall for turn in turns), min(turn[name].cpu for turn in turns))
            ratio = "" if name == base else f"   {ratios[name].wall:6.3f} x wall {ratios[name].cpu:6.3f} x CPU"
            print(f"  {name:42} {least.wall:8.3f} s wall {least.cpu:8.3f} s CPU{ratio}")
        return ratios

    return measure


@pytest.fixture
def coco(shared):
    """The options of COCO's photographs as a dataset, and of YOLOX-nano as a model."""
    folder = shared / "data" / "coco"
    instances = str(folder / "annotations" / "instances_val2017.json")
    return {
        "dataset": {"kind": "coco", "images": str(folder / "val2017"), "instances": instances},
        "yolox": {"name": "yolox-onnx", "path": str(shared / "models" / "yolox_nano.onnx")},
    }


@pytest.fixture
def write_experiment(tmp_path):
    """Writes an experiment file with the given sections, and returns its path."""

    def write(name, **sections):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, **sections}))
        return path

    return write
