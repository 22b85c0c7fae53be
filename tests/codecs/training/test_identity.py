"""What a stage's files record of its recipe does not depend on the names of classes, so renaming one loses no trained weights."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from icmbench.codecs.training import data, elic, stage
from icmbench.codecs.training.checkpoints import WEIGHTS
from icmbench.harness.commands.training import train
from icmbench.harness.config.recipe import load_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "0.png")
    content = {
        "name": "tiny",
        "objective": "elic",
        "set": {"n": 16, "m": 24, "slices": [8, 16], "context_widths": [16, 12], "parameter_width": 32},
        "points": [0.032],
        "data": {"images": "photos", "crop": 64},
        "stages": [{"name": "only", "steps": 1, "batch": 1}],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path)


def test_a_finished_stage_is_recognised_after_its_classes_were_renamed(recipe, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(recipe, out)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with safe_open(out / "only-lambda0.032" / WEIGHTS, "pt") as file:
        recorded = file.metadata()["recipe"]
    assert json.loads(recorded)["objective"] == "elic"
    for module, name in ((elic, "ElicObjective"), (stage, "StageOptions"), (data, "CropDataset")):
        assert name not in recorded
        monkeypatch.setattr(module, name, type("Renamed", (getattr(module, name),), {}))
    train(recipe, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == written
