"""The adapters for segmenters of transformers against its own processors and pipeline, on small random checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.transformers_segmentation import (  # noqa: E402
    ADE20K_STUFF,
    TransformersInstances,
    TransformersPanoptic,
    TransformersSemantic,
)


def swin() -> Any:
    return transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def mask2former(labels: int) -> tuple[Any, Any]:
    config = transformers.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=30,
        num_labels=labels,
    )
    network = transformers.Mask2FormerForUniversalSegmentation(config)
    # The usual small weights would make scores and masks uniform. With these, several queries win pixels for two classes.
    with torch.no_grad():
        network.class_predictor.weight.mul_(60)
        network.class_predictor.bias[[3, labels - 43]] = 20.0
        network.model.transformer_module.queries_features.weight.mul_(30)
        network.model.transformer_module.queries_embedder.weight.mul_(30)
    return network, transformers.Mask2FormerImageProcessor(size={"shortest_edge": 192, "longest_edge": 320})


def segformer() -> tuple[Any, Any]:
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
        num_labels=150,
    )
    return transformers.SegformerForSemanticSegmentation(config), transformers.SegformerImageProcessor(size=256)


def upernet() -> tuple[Any, Any]:
    config = transformers.UperNetConfig(
        backbone_config=swin(),
        backbone=None,
        hidden_size=32,
        pool_scales=[1, 2],
        auxiliary_in_channels=64,
        auxiliary_channels=16,
        num_labels=150,
    )
    return transformers.UperNetForSemanticSegmentation(config), transformers.SegformerImageProcessor(size=256)


def save_checkpoint(folder: Path, network: Any, processor: Any) -> Path:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return save_checkpoint(tmp_path_factory.mktemp("panoptic"), *mask2former(133))


def run_mask2former(folder: Path, photo: Any) -> tuple[Any, Any]:
    """Processor and network output by transformers alone."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
        return processor, network(**processor(images=Image.fromarray(photo), return_tensors="pt"))


@pytest.mark.parametrize("build", [segformer, upernet])
def test_label_maps_equal_the_pipelines(build: Callable[[], tuple[Any, Any]], tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(0)
    folder = save_checkpoint(tmp_path, *build())
    model = TransformersSemantic(path=folder, batch_size=1)
    pipeline = transformers.pipeline("image-segmentation", model=str(folder), device="cpu")
    for photo, labels in zip(photos[1:2], model(photos[1:2]), strict=True):
        assert labels.shape == photo.shape[:2] and labels.dtype == np.int32
        expected = {segment["label"]: np.asarray(segment["mask"]) > 0 for segment in pipeline(Image.fromarray(photo))}
        assert {model.categories[index] for index in np.unique(labels)} == set(expected)
        for name, mask in expected.items():
            np.testing.assert_array_equal(labels == model.categories.index(name), mask)
        assert len(expected) > 1


def test_label_maps_of_mask2former_equal_the_processors(panoptic: Path, photos: Any) -> None:
    processor, outputs = run_mask2former(panoptic, photos[0])
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[photos[0].shape[:2]])
    (labels,) = TransformersSemantic(path=panoptic)(photos[:1])
    np.testing.assert_array_equal(labels, expected.numpy())


def test_instances_equal_the_processors(tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(1)
    folder = save_checkpoint(tmp_path, *mask2former(80))
    model = TransformersInstances(path=folder, score_threshold=0.0, batch_size=1)
    for photo, output in zip(photos[:2], model(photos[:2]), strict=True):
        processor, outputs = run_mask2former(folder, photo)
        (expected,) = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[photo.shape[:2]], return_binary_maps=True
        )
        masks = coco_mask.decode(output["masks"]).transpose(2, 0, 1)
        np.testing.assert_array_equal(masks, expected["segmentation"].numpy())
        np.testing.assert_allclose(output["scores"], [segment["score"] for segment in expected["segments_info"]], atol=1e-6)
        assert output["classes"].tolist() == [segment["label_id"] for segment in expected["segments_info"]]
        assert len(masks) > 5 and masks.sum(0).max() > 1, "there are several masks, and some overlap"
        for mask, box in zip(masks, output["boxes"], strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_segments_equal_the_processors_if_all_categories_are_things(panoptic: Path, photos: Any) -> None:
    thresholds = {"threshold": 0.02, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.05}
    processor, outputs = run_mask2former(panoptic, photos[0])
    (expected,) = processor.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(), target_sizes=[photos[0].shape[:2]], **thresholds
    )
    names = TransformersPanoptic(path=panoptic).categories
    model = TransformersPanoptic(path=panoptic, score_threshold=0.02, mask_threshold=0.3, overlap_threshold=0.05, things=names)
    (output,) = model(photos[:1])
    assert output["segments"].dtype == np.int32 and output["segments"].shape == photos[0].shape[:2]
    np.testing.assert_array_equal(output["segments"], expected["segmentation"].numpy())
    assert output["segment_ids"].tolist() == [segment["id"] for segment in expected["segments_info"]]
    assert output["classes"].tolist() == [segment["label_id"] for segment in expected["segments_info"]]
    assert len(output["classes"]) > 3


def test_stuff_is_fused_and_things_stay_separate(panoptic: Path, photos: Any) -> None:
    options = {"score_threshold": 0.02, "mask_threshold": 0.3, "overlap_threshold": 0.05}
    names = TransformersPanoptic(path=panoptic).categories
    (separate,) = TransformersPanoptic(path=panoptic, things=names, **options)(photos[:1])
    (fused,) = TransformersPanoptic(path=panoptic, things=[], **options)(photos[:1])
    class_of_segment = dict(zip(separate["segment_ids"].tolist(), separate["classes"].tolist(), strict=True))
    classes = set(class_of_segment.values())
    assert len(classes) < len(class_of_segment), "a category has two segments"
    assert sorted(fused["classes"].tolist()) == sorted(classes)
    segment_of_class = dict(zip(fused["classes"].tolist(), fused["segment_ids"].tolist(), strict=True))
    for class_index in classes:
        segment_ids = [segment_id for segment_id, segment_class in class_of_segment.items() if segment_class == class_index]
        expected = np.isin(separate["segments"], segment_ids)
        np.testing.assert_array_equal(fused["segments"] == segment_of_class[class_index], expected)
    np.testing.assert_array_equal(fused["segments"] == 0, separate["segments"] == 0)


def test_cocos_stuff_is_fused_by_default(panoptic: Path, photos: Any) -> None:
    options = {"score_threshold": 0.02, "mask_threshold": 0.3, "overlap_threshold": 0.05}
    names = TransformersPanoptic(path=panoptic).categories
    (separate,) = TransformersPanoptic(path=panoptic, things=names, **options)(photos[:1])
    (coco,) = TransformersPanoptic(path=panoptic, **options)(photos[:1])
    thing, stuff = 3, 90  # The two classes that win in this network.
    assert set(separate["classes"].tolist()) == {thing, stuff}
    assert sorted(coco["classes"].tolist()) == [thing] * int((separate["classes"] == thing).sum()) + [stuff]


def test_an_image_without_segments_above_the_threshold_is_void(panoptic: Path, photos: Any) -> None:
    (segments,) = TransformersPanoptic(path=panoptic, score_threshold=1.0)(photos[:1])
    assert not segments["segments"].any() and segments["segment_ids"].size == segments["classes"].size == 0
    (instances,) = TransformersInstances(path=panoptic, score_threshold=1.0)(photos[:1])
    assert instances["masks"] == [] and instances["boxes"].shape == (0, 4)


def test_things_are_taken_from_the_label_set_or_the_option(panoptic: Path, tmp_path: Path) -> None:
    is_thing = TransformersPanoptic(path=panoptic).is_thing
    assert len(is_thing) == 133 and sum(is_thing) == 80 and all(is_thing[:80])
    assert len(ADE20K_STUFF) == 50
    with pytest.raises(ModelError, match="has no category 'persn'"):
        _ = TransformersPanoptic(path=panoptic, things=["persn"]).is_thing
    unknown_label_set = save_checkpoint(tmp_path, *mask2former(50))
    with pytest.raises(ModelError, match="things: list those of the 50 categories"):
        _ = TransformersPanoptic(path=unknown_label_set).fingerprint


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path, photos: Any) -> None:
    folder = save_checkpoint(tmp_path, *segformer())
    with pytest.raises(ModelError, match="a 'segformer' checkpoint is none for TransformersInstances"):
        TransformersInstances(path=folder)(photos[:1])
