"""Segmenters of transformers against the library's own processors and pipeline, on the same small random-weight checkpoints."""

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
    with torch.no_grad():  # far from uniform, so that several queries win pixels of their own
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


def saved(folder: Path, network: Any, processor: Any) -> Path:
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return saved(tmp_path_factory.mktemp("panoptic"), *mask2former(133))


def outputs_of(folder: Path, auto: Any, photo: Any) -> tuple[Any, Any]:
    """The library alone: its processor, its network."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        network = auto.from_pretrained(folder).eval()
        return processor, network(**processor(images=Image.fromarray(photo), return_tensors="pt"))


@pytest.mark.parametrize("build", [segformer, upernet])
def test_semantic_equals_the_pipeline(build: Callable[[], tuple[Any, Any]], tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(0)
    folder = saved(tmp_path, *build())
    model = TransformersSemantic(path=folder, batch_size=1)
    pipeline = transformers.pipeline("image-segmentation", model=str(folder), device="cpu")
    for photo, labels in zip(photos[1:2], model(photos[1:2]), strict=True):
        assert labels.shape == photo.shape[:2] and labels.dtype == np.int32
        expected = {one["label"]: np.asarray(one["mask"]) > 0 for one in pipeline(Image.fromarray(photo))}
        assert {model.categories[index] for index in np.unique(labels)} == set(expected)
        for name, mask in expected.items():
            np.testing.assert_array_equal(labels == model.categories.index(name), mask)
        assert len(expected) > 1


def test_mask2former_semantic(panoptic: Path, photos: Any) -> None:
    processor, outputs = outputs_of(panoptic, transformers.Mask2FormerForUniversalSegmentation, photos[0])
    (expected,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[photos[0].shape[:2]])
    (labels,) = TransformersSemantic(path=panoptic)(photos[:1])
    np.testing.assert_array_equal(labels, expected.numpy())


def test_instances_equal_the_library(tmp_path: Path, photos: Any) -> None:
    torch.manual_seed(1)
    folder = saved(tmp_path, *mask2former(80))
    model = TransformersInstances(path=folder, score_threshold=0.0, batch_size=1)
    for photo, found in zip(photos[:2], model(photos[:2]), strict=True):
        processor, outputs = outputs_of(folder, transformers.Mask2FormerForUniversalSegmentation, photo)
        (expected,) = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[photo.shape[:2]], return_binary_maps=True
        )
        masks = coco_mask.decode(found["masks"]).transpose(2, 0, 1)
        np.testing.assert_array_equal(masks, expected["segmentation"].numpy())
        np.testing.assert_allclose(found["scores"], [one["score"] for one in expected["segments_info"]], atol=1e-6)
        assert found["classes"].tolist() == [one["label_id"] for one in expected["segments_info"]]
        assert len(masks) > 5 and masks.sum(0).max() > 1, "several masks, some overlapping"
        for mask, box in zip(masks, found["boxes"], strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_panoptic_equals_the_library_where_nothing_is_fused(panoptic: Path, photos: Any) -> None:
    thresholds = {"threshold": 0.02, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.05}
    processor, outputs = outputs_of(panoptic, transformers.Mask2FormerForUniversalSegmentation, photos[0])
    (expected,) = processor.post_process_panoptic_segmentation(
        outputs, label_ids_to_fuse=set(), target_sizes=[photos[0].shape[:2]], **thresholds
    )
    names = TransformersPanoptic(path=panoptic).categories
    model = TransformersPanoptic(path=panoptic, score_threshold=0.02, mask_threshold=0.3, overlap_threshold=0.05, things=names)
    (found,) = model(photos[:1])
    assert found["segments"].dtype == np.int32 and found["segments"].shape == photos[0].shape[:2]
    np.testing.assert_array_equal(found["segments"], expected["segmentation"].numpy())
    assert found["segment_ids"].tolist() == [one["id"] for one in expected["segments_info"]]
    assert found["classes"].tolist() == [one["label_id"] for one in expected["segments_info"]]
    assert len(found["classes"]) > 3


def test_stuff_is_fused_and_things_stay_apart(panoptic: Path, photos: Any) -> None:
    options = {"score_threshold": 0.02, "mask_threshold": 0.3, "overlap_threshold": 0.05}
    names = TransformersPanoptic(path=panoptic).categories
    (apart,) = TransformersPanoptic(path=panoptic, things=names, **options)(photos[:1])
    (fused,) = TransformersPanoptic(path=panoptic, things=[], **options)(photos[:1])
    classes = dict(zip(apart["segment_ids"].tolist(), apart["classes"].tolist(), strict=True))
    assert len(set(classes.values())) < len(classes), "some category has two segments"
    assert len(fused["classes"]) == len(set(classes.values())) == len(set(fused["classes"].tolist()))
    by_class = dict(zip(fused["classes"].tolist(), fused["segment_ids"].tolist(), strict=True))
    for label in set(classes.values()):
        own = np.isin(apart["segments"], [number for number, of in classes.items() if of == label])
        np.testing.assert_array_equal(fused["segments"] == by_class[label], own)
    np.testing.assert_array_equal(fused["segments"] == 0, apart["segments"] == 0)
    (coco,) = TransformersPanoptic(path=panoptic, **options)(photos[:1])  # 3 is a thing of COCO, 90 is stuff
    assert sorted(coco["classes"].tolist()) == sorted([of for of in classes.values() if of == 3] + [90])


def test_nothing_above_the_threshold_is_void(panoptic: Path, photos: Any) -> None:
    (found,) = TransformersPanoptic(path=panoptic, score_threshold=1.0)(photos[:1])
    assert not found["segments"].any() and found["segment_ids"].size == found["classes"].size == 0
    (instances,) = TransformersInstances(path=panoptic, score_threshold=1.0)(photos[:1])
    assert instances["masks"] == [] and instances["boxes"].shape == (0, 4)


def test_things_of_the_known_label_sets(panoptic: Path, tmp_path: Path) -> None:
    known = TransformersPanoptic(path=panoptic).is_thing
    assert len(known) == 133 and sum(known) == 80 and all(known[:80])
    assert len(ADE20K_STUFF) == 50
    with pytest.raises(ModelError, match="has no category 'persn'"):
        _ = TransformersPanoptic(path=panoptic, things=["persn"]).is_thing
    other = saved(tmp_path, *mask2former(50))
    with pytest.raises(ModelError, match="things: list those of the 50 categories"):
        _ = TransformersPanoptic(path=other).fingerprint


def test_a_checkpoint_of_another_task_is_refused(tmp_path: Path, photos: Any) -> None:
    folder = saved(tmp_path, *segformer())
    with pytest.raises(ModelError, match="a 'segformer' checkpoint is none for TransformersInstances"):
        TransformersInstances(path=folder)(photos[:1])
