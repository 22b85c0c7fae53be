"""The adapter for detectors of transformers against its own pipeline, on small random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.transformers_detection import TransformersDetector  # noqa: E402

HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
HYBRID = {
    **HEADS,
    "encoder_hidden_dim": 32,
    "d_model": 32,
    "num_queries": 50,
    "decoder_layers": 2,
    "decoder_in_channels": [32, 32, 32],
    "hidden_expansion": 1.0,
    "num_labels": 80,
}


def resnet_backbone() -> Any:
    return transformers.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_detr() -> tuple[Any, Any]:
    config = transformers.RTDetrConfig(backbone_config=resnet_backbone(), encoder_in_channels=[32, 48, 64], **HYBRID)
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessor()


def rt_detr_v2() -> tuple[Any, Any]:
    config = transformers.RTDetrV2Config(backbone_config=resnet_backbone(), encoder_in_channels=[32, 48, 64], **HYBRID)
    return transformers.RTDetrV2ForObjectDetection(config), transformers.RTDetrImageProcessor()


def d_fine() -> tuple[Any, Any]:
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 16, 32, 32],
        stage_mid_channels=[16, 16, 32, 32],
        stage_out_channels=[16, 32, 32, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 32, 32],
        depths=[1, 1, 1, 1],
        embedding_size=16,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.DFineConfig(backbone_config=backbone, encoder_in_channels=[32, 32, 32], **HYBRID)
    return transformers.DFineForObjectDetection(config), transformers.RTDetrImageProcessor()


def detr() -> tuple[Any, Any]:
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=32,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=1,
        num_labels=91,
        **HEADS,
    )
    size = {"shortest_edge": 200, "longest_edge": 280}
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor(size=size)


def save_checkpoint(build: Callable[[], tuple[Any, Any]], folder: Path, names: list[str] | None = None) -> Path:
    torch.manual_seed(0)
    network, processor = build()
    if names:
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {name: index for index, name in enumerate(names)}
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("build", [rt_detr, rt_detr_v2, d_fine, detr])
def test_detections_equal_the_pipelines(build: Callable[[], tuple[Any, Any]], tmp_path: Path, photos: Any) -> None:
    folder = save_checkpoint(build, tmp_path)
    model = TransformersDetector(path=folder, batch_size=1)
    pipeline = transformers.pipeline("object-detection", model=str(folder), device="cpu")
    for photo, output in zip(photos[:2], model(photos[:2]), strict=True):
        # The pipeline truncates coordinates to whole pixels. Its steps, run one by one, give the exact ones.
        inputs = pipeline.preprocess(Image.fromarray(photo))
        with torch.inference_mode():
            outputs = pipeline._forward(inputs)
        expected = pipeline.image_processor.post_process_object_detection(outputs, 0.0, outputs["target_size"])[0]
        np.testing.assert_allclose(output["boxes"], expected["boxes"].numpy(), atol=1e-3)
        np.testing.assert_allclose(output["scores"], expected["scores"].numpy(), atol=1e-6)
        np.testing.assert_array_equal(output["classes"], expected["labels"].numpy())
        for box, truncated in zip(output["boxes"], pipeline(Image.fromarray(photo), threshold=0.0), strict=True):
            assert np.abs(box - np.array(list(truncated["box"].values()))).max() <= 1
        assert output["boxes"].dtype == output["scores"].dtype == np.float32 and output["classes"].dtype == np.int64
        assert len(output["scores"]) == (20 if build is detr else 50)


def test_a_batch_of_mixed_shapes_pads_no_image(tmp_path: Path, photos: Any) -> None:
    model = TransformersDetector(path=save_checkpoint(detr, tmp_path), batch_size=5)
    batch = model(photos)
    for photo, output in zip(photos, batch, strict=True):
        (single,) = model([photo])
        np.testing.assert_allclose(output["boxes"], single["boxes"], atol=0.01)
        np.testing.assert_allclose(output["scores"], single["scores"], atol=1e-5)
        height, width = photo.shape[:2]
        assert (output["boxes"][:, 2] > width / 2).any() and (output["boxes"] < max(height, width) * 1.5).all()


def test_boxes_above_the_score_threshold_are_kept(tmp_path: Path, photos: Any) -> None:
    folder = save_checkpoint(rt_detr, tmp_path)
    (all_boxes,) = TransformersDetector(path=folder)(photos[:1])
    threshold = float(np.median(all_boxes["scores"]))
    (upper_half,) = TransformersDetector(path=folder, score_threshold=threshold)(photos[:1])
    np.testing.assert_array_equal(upper_half["scores"], all_boxes["scores"][all_boxes["scores"] > threshold])
    (empty,) = TransformersDetector(path=folder, score_threshold=1.0)(photos[:1])
    assert empty["boxes"].shape == (0, 4) and empty["classes"].shape == (0,)


def test_names_of_pascal_voc_become_cocos(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(80)]
    names[3], names[4], names[57] = "motorbike", "aeroplane", "sofa"
    model = TransformersDetector(path=save_checkpoint(rt_detr, tmp_path, names))
    assert [model.categories[index] for index in (2, 3, 4, 57)] == ["class 2", "motorcycle", "airplane", "couch"]


def test_the_fingerprint_holds_every_file_and_loads_no_network(tmp_path: Path) -> None:
    folder = save_checkpoint(rt_detr, tmp_path)
    model = TransformersDetector(path=folder)
    before = model.fingerprint
    facts = json.loads(before)
    assert set(facts["files"]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert facts["transformers"] == transformers.__version__
    assert "network" not in vars(model)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 3}))
    assert TransformersDetector(path=folder).fingerprint != before
    assert TransformersDetector(path=folder, dtype="bfloat16").fingerprint != TransformersDetector(path=folder).fingerprint


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path, photos: Any) -> None:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 16], depths=[1, 1], layer_type="basic")
    network = transformers.ResNetForImageClassification(config)
    network.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a 'resnet' checkpoint is none for TransformersDetector"):
        TransformersDetector(path=tmp_path)(photos[:1])


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path, photos: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(rt_detr, tmp_path)
    state = load_file(folder / "model.safetensors")
    headless = {name: value for name, value in state.items() if "class_embed" not in name and "enc_score_head" not in name}
    assert len(headless) < len(state)
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights of RTDetrForObjectDetection are not in this checkpoint, such as"):
        TransformersDetector(path=folder)(photos[:1])


def test_a_missing_checkpoint_is_reported_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="give either `checkpoint`"):
        TransformersDetector()
    with pytest.raises(ModelError, match=r"no config\.json in this folder"):
        TransformersDetector(path=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cannot load 'nobody/nothing' .*HF_HOME, then HF_HUB_OFFLINE=1\), or give `path`"):
        _ = TransformersDetector(checkpoint="nobody/nothing").fingerprint
