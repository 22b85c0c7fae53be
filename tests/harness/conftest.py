"""Fixtures for small experiments over synthetic photographs, with plug-ins of another package."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icmbench.harness.config import plugins

PLUGINS = Path(__file__).parent / "plugins"


@pytest.fixture(autouse=True)
def plugin_package(monkeypatch):
    """Makes the package of small plug-ins importable in this process and in every process that a test starts."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    plugins.available.cache_clear()
    yield
    plugins.available.cache_clear()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A function that counts the calls of codecs, models and contexts in all processes since it was last called."""
    log = tmp_path / "calls.log"
    monkeypatch.setenv("ICMBENCH_CALLS", str(log))

    def count():
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        log.unlink(missing_ok=True)
        return {line: lines.count(line) for line in sorted(set(lines))}

    return count


@pytest.fixture
def photos(tmp_path):
    """A folder of ten smooth pictures of three sizes; the third picture is dark."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(10):
        height, width = [(40, 60), (60, 40), (33, 47)][k % 3]
        noise = Image.fromarray(random.integers(0, 90 if k == 2 else 255, (5, 5, 3), dtype=np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def experiment(tmp_path, photos):
    """A function that writes an experiment file and returns its path; keyword arguments replace sections of the file."""

    def write(**changes):
        import yaml

        sections = {
            "name": "small",
            "shard_size": 4,
            "batch_size": 3,
            "datasets": {"photos": {"kind": "images", "images": "photos"}},
            "codecs": [{"name": "shift"}],
            "tasks": [
                {"name": "mean-colour", "dataset": "photos", "model": {"name": "averager"}, "reference": "original"},
                {"name": "distance", "dataset": "photos"},
            ],
            "anchor": "shift",
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(sections | changes))
        return path

    return write


@pytest.fixture
def icmbench():
    """A function that runs the command line in a process of its own."""

    def call(*arguments, **options):
        command = [sys.executable, "-m", "icmbench.harness.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300, **options)

    return call
