"""Fingerprints hold what decides: files beside an ONNX file, files in subfolders of a model folder, Pillow where it resizes."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts import captioners, model_files
from icmbench.codecs.diffusion.prompts.captioners import Transformers
from icmbench.tasks.models import hub
from icmbench.tasks.models.yolox_onnx import YoloxOnnx, external_sha256
from icmbench.tasks.text_embedder import SentenceEmbedder


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    length = len(payload)
    return bytes([number << 3 | 2]) + (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])) + payload


def onnx_file(path: Path, *locations: str) -> Path:
    """An ONNX file whose tensors lie in other files, as the package onnx writes it; without locations, in the file itself."""
    entries = [
        field(13, field(1, b"location") + field(2, name.encode())) + field(13, field(1, b"offset") + field(2, b"0"))
        for name in locations
    ]
    tensors = [field(5, b"\x08\x02\x10\x01" + field(8, b"w") + entry + b"\x70\x01") for entry in entries or [field(9, bytes(8))]]
    path.write_bytes(b"\x08\x08" + field(7, b"".join(tensors)))
    return path


@pytest.mark.parametrize("name", ["yolox.data", "weights/tensor one.bin", "ä" * 80])
def test_external_data_of_onnx_is_in_the_fingerprint(tmp_path: Path, name: str) -> None:
    path = onnx_file(tmp_path / "yolox.onnx", name, name)
    data = tmp_path / name
    data.parent.mkdir(exist_ok=True)
    data.write_bytes(b"1")
    (tmp_path / "other.data").write_bytes(b"nothing of this model")
    before = YoloxOnnx(path).fingerprint
    assert list(json.loads(before)["external"]) == [name]
    data.write_bytes(b"22")
    assert YoloxOnnx(path).fingerprint != before
    (tmp_path / "other.data").write_bytes(b"changed")
    data.write_bytes(b"1")
    assert json.loads(YoloxOnnx(path).fingerprint)["external"] == json.loads(before)["external"]


def test_a_model_in_one_file_keeps_its_fingerprint(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "yolox.onnx")
    assert external_sha256(path) == {} and "external" not in json.loads(YoloxOnnx(path).fingerprint)


def test_external_data_as_the_library_writes_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(__import__("numpy").ones((64, 64), "float32"), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    assert list(external_sha256(tmp_path / "m.onnx")) == ["m.weights"]


@pytest.mark.parametrize("module", [hub, model_files])
def test_every_file_of_a_model_folder_is_hashed(module: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("config.json", "1_Pooling/config.json", "code.py", "deep/er/x.onnx_data", "README.md", ".git/HEAD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "loop").symlink_to(folder)
    (folder / "1_Pooling/up").symlink_to(tmp_path)
    (folder / "linked.bin").symlink_to(folder / "config.json")
    os.mkfifo(folder / "pipe.bin")
    expected = ["1_Pooling/config.json", "code.py", "config.json", "deep/er/x.onnx_data", "linked.bin"]
    hashes = module.folder_sha256(folder)
    assert list(hashes) == expected
    (folder / "1_Pooling/config.json").write_text("changed")
    changed = module.folder_sha256(folder)
    assert [name for name in expected if hashes[name] != changed[name]] == ["1_Pooling/config.json"]


def test_a_sentence_embedder_names_its_pooling(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "1_Pooling").mkdir()
    prints = []
    for mode in ("mean", "cls"):
        (tmp_path / "1_Pooling/config.json").write_text(mode)
        prints.append(SentenceEmbedder(tmp_path).fingerprint)
    assert prints[0] != prints[1]


def test_a_captioner_of_the_hub_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {None: "1" * 40, "v2": "2" * 40}
    monkeypatch.setattr(captioners, "commit_of", lambda source, revision: commits[revision])
    facts = Transformers("org/model").facts
    assert "1" * 40 in json.dumps(facts) and "2" * 40 in json.dumps(Transformers("org/model", revision="v2").facts)
    commits[None] = "3" * 40
    assert Transformers("org/model").facts != facts


def test_a_captioner_of_the_hub_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodecError, match=r"captioner 'no/such-model' cannot be had .*name a folder"):
        _ = Transformers("no/such-model").facts


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        ("timm_models", "TimmClassifier", {"architecture": "resnet18"}),
        ("open_clip_models", "OpenClip", {"architecture": "RN50"}),
        ("torchvision_models", "TorchvisionClassifier", {}),
        ("torchvision_models", "TorchvisionSemantic", {}),
        ("efficientnet_lite", "EfficientNetLite0", {}),
    ],
)
def test_pillow_is_named_where_it_resizes(module: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    for package in ("torchvision", {"timm_models": "timm", "open_clip_models": "open_clip"}.get(module, "torch")):
        pytest.importorskip(package)
    if options:
        options = {**options, "path": tmp_path / "weights.pt"}
        options["path"].write_bytes(b"weights")
    adapter = getattr(importlib.import_module(f"icmbench.tasks.models.{module}"), name)
    try:
        model = adapter(**options)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    assert json.loads(model.fingerprint)["pillow"]
