"""The adapter for timm against timm's own transforms and networks, on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from PIL import Image  # noqa: E402
from timm.data import create_transform, resolve_model_data_config  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.timm_models import TimmClassifier  # noqa: E402


def save_random_weights(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "weights.pth"
    torch.save(timm.create_model(name).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "convnext_atto.d2_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_scores_equal_timms(name: str, tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(name, tmp_path)
    scores = TimmClassifier(name, path=path, batch_size=3)(photos)
    network = timm.create_model(name, checkpoint_path=path).eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        expected = torch.cat([network(transform(Image.fromarray(photo))[None]) for photo in photos]).numpy()
    assert scores.shape == (5, 1000) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(scores, axis=0).max() > 1e-6, "scores differ between the photographs"


def test_a_folder_as_timm_pushes_it_to_the_hub(tmp_path: Path, photos: Any) -> None:
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model("resnet18.a1_in1k", num_classes=7).eval()
    save_for_hf(network, tmp_path)
    scores = TimmClassifier(path=tmp_path)(photos[:2])
    assert scores.shape == (2, 7)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    with torch.inference_mode():
        expected = network(torch.stack([transform(Image.fromarray(photo)) for photo in photos[:2]])).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_the_test_time_size_is_another_model(tmp_path: Path, photos: Any) -> None:
    path = save_random_weights("resnet18.a1_in1k", tmp_path)
    small, large = (TimmClassifier("resnet18.a1_in1k", path=path, test_size=test_size) for test_size in (False, True))
    assert small.fingerprint != large.fingerprint
    assert "network" not in vars(small), "the fingerprint does not load the network"
    assert np.abs(small(photos[:1]) - large(photos[:1])).max() > 0
    assert [model.transform.transforms[1].size for model in (small, large)] == [(224, 224), (288, 288)]


def test_wrong_names_are_reported_in_one_sentence(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="give `architecture`, or a folder"):
        TimmClassifier()
    with pytest.raises(ModelError, match="timm has no 'resnet5O'"):
        _ = TimmClassifier("resnet5O").fingerprint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cannot load 'timm/resnet18\.a1_in1k' .* or give `path`"):
        _ = TimmClassifier("resnet18.a1_in1k").fingerprint
    with pytest.raises(ModelError, match=r"cannot load 'resnet18\.a1_in1k' .* or give `path`"):
        TimmClassifier("resnet18.a1_in1k")(photos[:1])


def test_the_fingerprint_holds_the_hash_of_the_file(tmp_path: Path) -> None:
    path = save_random_weights("resnet18", tmp_path)
    facts = json.loads(TimmClassifier("resnet18", path=path).fingerprint)
    assert len(facts["weights"]) == 64 and facts["timm"] == timm.__version__
