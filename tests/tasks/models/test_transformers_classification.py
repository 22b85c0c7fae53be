"""The adapters for classifiers and dual encoders of transformers against its own pipelines, on small random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.transformers_classification import TransformersClassifier  # noqa: E402
from icmbench.tasks.models.transformers_clip import TransformersClip  # noqa: E402

WORDS = ["a", "photo", "of", "cat", "dog", "giraffe", "street", "red", "the", "on"]
TEXTS = ["a photo of a cat", "the red dog on the street", "giraffe"]


def resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10)
    return transformers.ResNetForImageClassification(config), transformers.ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875
    )


def convnext() -> tuple[Any, Any]:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], num_labels=10)
    return transformers.ConvNextForImageClassification(config), transformers.ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875
    )


def vit() -> tuple[Any, Any]:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        num_labels=10,
    )
    return transformers.ViTForImageClassification(config), transformers.ViTImageProcessor(size={"height": 64, "width": 64})


@pytest.mark.parametrize("build", [resnet, convnext, vit])
def test_logits_equal_the_pipelines(build: Any, tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(0)
    network, processor = build()
    network.config.id2label = {index: f"name {index}" for index in range(10)}
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = TransformersClassifier(path=tmp_path, batch_size=2)
    scores = model(photos)
    assert scores.shape == (5, 10) and scores.dtype == np.float32
    pipeline = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    for photo, row in zip(photos, scores, strict=True):
        answers = pipeline(Image.fromarray(photo), top_k=10, function_to_apply="none")
        expected = {answer["label"]: answer["score"] for answer in answers}
        np.testing.assert_allclose(row, [expected[name] for name in model.categories], atol=1e-5)
    assert np.ptp(scores, axis=0).max() > 1e-4, "scores differ between the photographs"


def build_tokenizer() -> Any:
    """A CLIP byte-pair tokenizer that knows WORDS as whole words, built without a download."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges: list[tuple[str, str]] = []
    pieces = dict.fromkeys(letters) | {f"{letter}</w>": None for letter in letters}
    for word in WORDS:
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
            symbols = ["".join(pair), *symbols[2:]]
            pieces[symbols[0]] = None
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def save_clip(folder: Path) -> Path:
    tokenizer = build_tokenizer()
    last = len(tokenizer) - 1
    config = transformers.CLIPConfig(
        text_config={
            **ENCODER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": last - 1,
            "eos_token_id": last,
        },
        vision_config={**ENCODER, "image_size": 64, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    tokenizer = build_tokenizer()
    config = transformers.SiglipConfig(
        text_config={**ENCODER, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        vision_config={**ENCODER, "image_size": 64, "patch_size": 16},
    )
    torch.manual_seed(0)
    transformers.SiglipModel(config).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_similarities_equal_the_pipelines(save: Any, tmp_path: Path, photos: Any) -> None:
    folder = save(tmp_path)
    model = TransformersClip(path=folder, batch_size=2)
    images, texts = model.embed_images(photos), model.embed_texts(TEXTS)
    for rows, count in ((images, 5), (texts, 3)):
        assert rows.dtype == np.float32 and len(rows) == count
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    network = pipeline.model
    scale, bias = network.logit_scale.exp().item(), getattr(network, "logit_bias", torch.zeros(1)).item()
    for photo, row in zip(photos, images, strict=True):
        inputs = pipeline.preprocess(Image.fromarray(photo), candidate_labels=TEXTS, hypothesis_template="{}")
        with torch.inference_mode():
            logits = pipeline._forward(inputs)["logits"][0].numpy()
        np.testing.assert_allclose(scale * row @ texts.T + bias, logits, atol=1e-4)
    assert np.ptp(images @ texts.T, axis=1).min() > 1e-4, "similarities differ between the texts"


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_a_long_caption_is_cut_and_a_batch_changes_nothing(save: Any, tmp_path: Path) -> None:
    model = TransformersClip(path=save(tmp_path), batch_size=3)
    long_caption = " ".join(["the red dog on the street"] * 40)
    batch = model.embed_texts(["giraffe", long_caption, "a cat"])
    np.testing.assert_allclose(batch[0], model.embed_texts(["giraffe"])[0], atol=1e-6)
    np.testing.assert_allclose(batch[1], model.embed_texts([long_caption + " a cat"])[0], atol=1e-6)


def test_the_fingerprint_holds_the_tokenizer_and_loads_no_network(tmp_path: Path) -> None:
    model = TransformersClip(path=save_clip(tmp_path))
    assert {"tokenizer.json", "preprocessor_config.json", "model.safetensors"} <= set(json.loads(model.fingerprint)["files"])
    assert "network" not in vars(model)


def test_a_classifier_is_refused_as_a_dual_encoder(tmp_path: Path, photos: Any) -> None:
    network, processor = vit()
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a 'vit' checkpoint is none for TransformersClip"):
        TransformersClip(path=tmp_path).embed_images(photos[:1])
