"""Benchmarks run alternatives in turns in one session and print ratios, wall and processor seconds beside each other.

Processor seconds are those of all threads and of child processes that have ended; they hardly depend on what else the machine does.
"""

import os
import resource
import statistics
import time
from dataclasses import dataclass

import pytest
import yaml


@dataclass(frozen=True)
class Spent:
    """Seconds."""

    wall: float
    cpu: float

    def over(self, other):
        return Spent(self.wall / other.wall, self.cpu / other.cpu)


def processor():
    """Processor seconds of this process and of its ended children."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def spent(call):
    """What a call takes."""
    start = time.perf_counter(), processor()
    call()
    return Spent(time.perf_counter() - start[0], processor() - start[1])


@pytest.fixture
def in_turns():
    """Runs alternatives in turns, prints them, and gives each one's ratio to the first: the median of the turns' own ratios."""

    def measure(title, runs, repeats=3):
        turns = [{name: spent(run) for name, run in runs.items()} for _ in range(repeats)]
        base = next(iter(runs))
        ratios = {}
        print(f"\n{title} ({repeats} turns, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
        for name in runs:
            of_base = [turn[name].over(turn[base]) for turn in turns]
            ratios[name] = Spent(*(statistics.median(getattr(ratio, what) for ratio in of_base) for what in ("wall", "cpu")))
            least = Spent(*(min(getattr(turn[name], what) for turn in turns) for what in ("wall", "cpu")))
            ratio = "" if name == base else f"   {ratios[name].wall:6.3f} x wall {ratios[name].cpu:6.3f} x CPU"
            print(f"  {name:42} {least.wall:8.3f} s wall {least.cpu:8.3f} s CPU{ratio}")
        return ratios

    return measure


@pytest.fixture
def coco(shared):
    """Keys of the COCO photographs as a dataset, and YOLOX-nano as a model."""
    folder = shared / "data" / "coco"
    instances = str(folder / "annotations" / "instances_val2017.json")
    return {
        "dataset": {"kind": "coco", "images": str(folder / "val2017"), "instances": instances},
        "yolox": {"name": "yolox-onnx", "path": str(shared / "models" / "yolox_nano.onnx")},
    }


@pytest.fixture
def written(tmp_path):
    """Writes an experiment file."""

    def write(name, **blocks):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, **blocks}))
        return path

    return write
