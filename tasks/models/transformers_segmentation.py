"""Segmenters from the hub: Mask2Former and MaskFormer (instances, panoptic, semantic), SegFormer, UperNet and others (semantic)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.masks import encode_masks
from icmbench.tasks.models.pretrained import Pretrained

# What is stuff in the panoptic label sets that checkpoints are trained on, by their number of categories.
# fmt: off
ADE20K_STUFF = frozenset({
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79, 84, 91, 94,
    96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
})
# fmt: on
COCO_STUFF = frozenset(range(80, 133))  # things come first
CITYSCAPES_STUFF = frozenset(range(11))  # things come last
STUFF = {133: COCO_STUFF, 150: ADE20K_STUFF, 19: CITYSCAPES_STUFF}


class TransformersSemantic(Pretrained):
    """SegFormer, UperNet, BEiT, DPT, Mask2Former and every other semantic segmenter of transformers.

    Each image gives a label map int32 (height, width) into `categories`, by the checkpoint's own preprocessing and
    `post_process_semantic_segmentation`, which upsamples logits to the image's size before the argmax.
    """

    task: ClassVar[str] = "semantic_segmentation"
    auto = ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation")

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-semantic", **self.facts())

    def __call__(self, images: Sequence[Image]) -> list[npt.NDArray[np.int32]]:
        return by_shape(images, self.batch_size, self._label)

    def _label(self, images: list[Image]) -> list[npt.NDArray[np.int32]]:
        import torch

        with torch.inference_mode():
            outputs = self.network(**self.inputs(images))
            maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2] for image in images])
        return [labels.cpu().numpy().astype(np.int32) for labels in maps]


class TransformersInstances(Pretrained):
    """Instance segmentation by Mask2Former, MaskFormer and others of transformers.

    Each image gives `masks` (COCO run lengths), `boxes` float32 (n, 4) as x1, y1, x2, y2 around them, `scores` float32 (n,),
    `classes` int64 (n,) into `categories`. Masks may overlap, as AP wants them.

    score_threshold: instances below are dropped; 0 keeps all, as AP is published.
    """

    task: ClassVar[tuple[str, ...]] = ("instance_segmentation", "detection")
    auto = ("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation")

    def __init__(
        self,
        checkpoint: str | None = None,
        path: Path | None = None,
        revision: str | None = None,
        score_threshold: float = 0.0,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 2,
    ) -> None:
        super().__init__(checkpoint, path, revision, device, dtype, batch_size)
        self.score_threshold = score_threshold

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-instances", score_threshold=self.score_threshold, **self.facts())

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, self._segment)

    def _segment(self, images: list[Image]) -> list[dict[str, Any]]:
        import torch

        sizes = [image.shape[:2] for image in images]
        with torch.inference_mode():
            outputs = self.network(**self.inputs(images))
            finish = _step(self.processor, "post_process_instance_segmentation", "return_binary_maps")
            found = finish(outputs, threshold=self.score_threshold, target_sizes=sizes, return_binary_maps=True)
        return [_instances(one) for one in found]


class TransformersPanoptic(Pretrained):
    """Panoptic segmentation by Mask2Former, MaskFormer and others of transformers.

    Each image gives `segments` int32 (height, width) with 0 for void, `segment_ids` int64 (n,), `classes` int64 (n,) into
    `categories`. Things stay apart; stuff of one category is one segment.

    score_threshold, mask_threshold, overlap_threshold: the post-processing's own; Mask2Former's authors use 0.8, 0.5, 0.8.
    things: names of the categories that are things; known for the label sets of COCO, ADE20K and Cityscapes.
    """

    task: ClassVar[str] = "panoptic"
    auto = ("AutoModelForUniversalSegmentation",)

    def __init__(
        self,
        checkpoint: str | None = None,
        path: Path | None = None,
        revision: str | None = None,
        score_threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        things: list[str] | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 2,
    ) -> None:
        super().__init__(checkpoint, path, revision, device, dtype, batch_size)
        self.thresholds = {
            "threshold": score_threshold,
            "mask_threshold": mask_threshold,
            "overlap_mask_area_threshold": overlap_threshold,
        }
        self.things = things

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-panoptic", is_thing=self.is_thing, **self.thresholds, **self.facts())

    @property
    def is_thing(self) -> list[bool]:
        """By category: countable things (True) or stuff."""
        names = self.categories
        if self.things is not None:
            unknown = sorted(set(self.things) - set(names))
            if unknown:
                raise ModelError(f"things: {self.checkpoint.source} has no category {unknown[0]!r}")
            return [name in self.things for name in names]
        if len(names) not in STUFF:
            raise ModelError(f"things: list those of the {len(names)} categories of {self.checkpoint.source} that are things")
        return [index not in STUFF[len(names)] for index in range(len(names))]

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, self._segment)

    def _segment(self, images: list[Image]) -> list[dict[str, Any]]:
        import torch

        sizes = [image.shape[:2] for image in images]
        with torch.inference_mode():
            outputs = self.network(**self.inputs(images))
            finish = _step(self.processor, "post_process_panoptic_segmentation", "label_ids_to_fuse")
            # transformers' own fusing hands out ids twice, so that a thing can end up inside a piece of stuff
            found = finish(outputs, label_ids_to_fuse=set(), target_sizes=sizes, **self.thresholds)
        return [_fused(one, self.is_thing) for one in found]


def _step(processor: Any, name: str, option: str) -> Callable[..., Any]:
    """A post-processing step that takes the option which gives what the task is scored on."""
    step = getattr(processor, name, None)
    if step is None or option not in inspect.signature(step).parameters:
        raise ModelError(f"{type(processor).__name__} has no {name} with {option}; take a Mask2Former or MaskFormer checkpoint")
    return step


def _instances(found: dict[str, Any]) -> dict[str, Any]:
    """Binary maps (n, height, width) and their descriptions in this project's names."""
    from pycocotools.mask import toBbox

    about = found["segments_info"]
    masks = encode_masks(found["segmentation"].cpu().numpy().astype(bool)) if about else []
    boxes = np.asarray(toBbox(masks), np.float32).reshape(-1, 4) if masks else np.zeros((0, 4), np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "scores": np.array([one["score"] for one in about], np.float32),
        "classes": np.array([one["label_id"] for one in about], np.int64),
        "masks": masks,
    }


def _fused(found: dict[str, Any], is_thing: Sequence[bool]) -> dict[str, Any]:
    """Segments in this project's names, those of one stuff category made one, which takes the id of the first."""
    numbers = np.maximum(found["segmentation"].cpu().numpy().astype(np.int32), 0)  # where nothing is found all is -1
    kept: dict[int, int] = {}  # segment id: class
    stuff: dict[int, int] = {}  # class: segment id
    renamed = np.arange(numbers.max() + 1, dtype=np.int32)
    for one in found["segments_info"]:
        first = one["id"] if is_thing[one["label_id"]] else stuff.setdefault(one["label_id"], one["id"])
        renamed[one["id"]] = first
        kept[first] = one["label_id"]
    return {
        "segments": renamed[numbers],
        "segment_ids": np.array(list(kept), np.int64),
        "classes": np.array(list(kept.values()), np.int64),
    }
