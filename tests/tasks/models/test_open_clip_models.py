"""The adapter for open_clip against open_clip's own factory, on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from PIL import Image  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.open_clip_models import OpenClip  # noqa: E402

TEXTS = ["a photo of a cat", "two giraffes near a tree", "a street", "People riding horses, in the snow!"]
TINY_CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny CLIP of random weights in a folder as open_clip pushes it to the hub."""
    torch.manual_seed(0)
    network = open_clip.CLIP(32, TINY_CONFIG["vision_cfg"], TINY_CONFIG["text_cfg"])
    torch.save(network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.48, 0.45, 0.4], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "shortest"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CONFIG, "preprocess_cfg": preprocess}))
    return tmp_path


def expected_embeddings(name: str, pretrained: str | None, photos: Any) -> tuple[Any, Any]:
    """Embeddings of the photographs, one at a time, and of TEXTS, by open_clip itself."""
    network, _, transform = open_clip.create_model_and_transforms(name, pretrained)
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    with torch.inference_mode():
        inputs = [transform(Image.fromarray(photo))[None] for photo in photos]
        images = torch.cat([network.eval().encode_image(pixels, normalize=True) for pixels in inputs])
        return images.numpy(), network.encode_text(tokens, normalize=True).numpy()


def test_embeddings_equal_open_clips(folder: Path, photos: Any) -> None:
    model = OpenClip(path=folder, batch_size=2)
    images, texts = expected_embeddings(f"local-dir:{folder}", None, photos)
    np.testing.assert_allclose(model.embed_images(photos), images, atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TEXTS), texts, atol=1e-6)
    assert images.shape == (5, 32) and texts.shape == (4, 32)
    assert np.ptp(images @ texts.T) > 1e-3, "similarities differ between the pairs"
    _, transform, _ = model._loaded
    assert transform.transforms[-1].mean == [0.48, 0.45, 0.4], "the preprocessing is the folder's"


def test_a_named_architecture_with_a_local_checkpoint(tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(0)
    path = tmp_path / "vit.pt"
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), path)
    model = OpenClip("ViT-S-32-alt", path=path)
    images, texts = expected_embeddings("ViT-S-32-alt", str(path), photos[:1])
    np.testing.assert_allclose(model.embed_images(photos[:1]), images, atol=1e-6)
    np.testing.assert_allclose(model.embed_texts(TEXTS), texts, atol=1e-6)


def test_half_precision(folder: Path, photos: Any) -> None:
    full, half = OpenClip(path=folder), OpenClip(path=folder, dtype="bfloat16")
    rows = half.embed_images(photos[:2])
    assert rows.dtype == np.float32 and half.embed_texts(TEXTS).shape == (4, 32)
    np.testing.assert_allclose(rows, full.embed_images(photos[:2]), atol=0.05)
    assert half.fingerprint != full.fingerprint


def test_the_fingerprint_loads_no_network(folder: Path) -> None:
    model = OpenClip(path=folder)
    facts = json.loads(model.fingerprint)
    assert set(facts["weights"]) == {"open_clip_config.json", "open_clip_pytorch_model.bin"}
    assert "_loaded" not in vars(model)


def test_wrong_names_are_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="give `architecture`, or a folder"):
        OpenClip()
    with pytest.raises(ModelError, match="name the weights once"):
        OpenClip("ViT-B-32")
    with pytest.raises(ModelError, match=r"pretrained: open_clip has no 'laion2b' for 'ViT-B-32'; known: .*laion2b_s34b_b79k"):
        _ = OpenClip("ViT-B-32", "laion2b").fingerprint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = OpenClip("ViT-B-32", "laion2b_s34b_b79k")
    for access in (lambda: model.fingerprint, lambda: model.embed_texts(TEXTS)):
        with pytest.raises(ModelError, match=r"cannot load .* or give `path`"):
            access()
