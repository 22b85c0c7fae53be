"""Checkpoints by hub name, read from a cache without a network, and packages that are not installed."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import Checkpoint, folder_sha256

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("module", "name", "options", "package"),
    [
        ("torchvision_models", "TorchvisionClassifier", {}, "torchvision"),
        ("transformers_detection", "TransformersDetector", {"checkpoint": "a/b"}, "transformers"),
        ("transformers_clip", "TransformersClip", {"checkpoint": "a/b"}, "transformers"),
        ("qwen_vl", "QwenVL", {"checkpoint": "a/b"}, "transformers"),
        ("timm_models", "TimmClassifier", {"architecture": "resnet18"}, "timm"),
        ("open_clip_models", "OpenClip", {"architecture": "RN50", "pretrained": "openai"}, "open_clip"),
        ("mmseg_models", "MMSegmenter", {"path": Path("x"), "zoo": "y"}, "mmseg"),
        ("detectron2_models", "Detectron2Instances", {"zoo": "COCO-Detection/faster_rcnn_R_50_FPN_3x"}, "detectron2"),
        ("openai_endpoint", "OpenAIEndpoint", {"url": "http://x/v1", "model_id": "m"}, "urllib3"),
    ],
)
def test_a_missing_package_is_named_at_once(
    module: str, name: str, options: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = getattr(importlib.import_module(f"icmbench.tasks.models.{module}"), name)
    # The machine may lack these as well. Any module stands in for them, so that only `package` is missing.
    for dependency in ("mmengine", "mmcv", "torch", "torchvision"):
        monkeypatch.setitem(sys.modules, dependency, sys.modules.get(dependency, importlib.import_module("json")))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as raised:
        adapter(**options)
    assert (raised.value.name or "").split(".")[0] == package


def test_importing_an_adapter_imports_no_framework() -> None:
    names = [path.stem for path in Path(importlib.import_module("icmbench.tasks.models.hub").__file__ or "").parent.glob("*.py")]
    code = f"import sys, importlib; [importlib.import_module('icmbench.tasks.models.' + name) for name in {sorted(names)}];"
    code += "print(sorted({'torch', 'torchvision', 'transformers', 'timm', 'cv2', 'onnxruntime', 'urllib3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_checkpoint_has_exactly_one_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for checkpoint, path in ((None, None), ("a/b", tmp_path)):
        with pytest.raises(ModelError, match="give either `checkpoint`"):
            Checkpoint(checkpoint, path, None)


def test_documentation_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not hashed")
    assert set(Checkpoint(None, tmp_path, None).facts["files"]) == set(folder_sha256(tmp_path)) == {"config.json"}


def write_to_cache(home: Path, repository: str, save: Callable[[Path], None]) -> None:
    """Save a repository in the layout of huggingface_hub's cache."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    save(snapshot)


def test_names_are_read_from_the_cache_without_a_network(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    timm = pytest.importorskip("timm")

    def save_resnet(folder: Path) -> None:
        config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16], depths=[1], layer_type="basic", num_labels=4)
        transformers.ResNetForImageClassification(config).save_pretrained(folder)
        transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)

    def save_timm_resnet(folder: Path) -> None:
        timm.models.save_for_hf(timm.create_model("resnet18.a1_in1k"), folder, safe_serialization=True)

    torch.manual_seed(0)
    write_to_cache(tmp_path, "someone/classifier", save_resnet)
    write_to_cache(tmp_path, "timm/resnet18.a1_in1k", save_timm_resnet)
    code = """
import json
import numpy as np
from icmbench.tasks.models.timm_models import TimmClassifier
from icmbench.tasks.models.transformers_classification import TransformersClassifier
image = np.zeros((40, 50, 3), np.uint8)
models = TransformersClassifier(checkpoint="someone/classifier"), TimmClassifier("resnet18.a1_in1k")
print(json.dumps([[json.loads(model.fingerprint) for model in models], [model([image]).shape for model in models]]))
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (facts, timm_facts), shapes = json.loads(done.stdout.splitlines()[-1])
    assert shapes == [[1, 4], [1, 1000]]
    assert (facts["checkpoint"], facts["commit"]) == ("someone/classifier", COMMIT)
    assert timm_facts["weights"] == {"timm/resnet18.a1_in1k": COMMIT}
