"""Segmenters of transformers.

Mask2Former and MaskFormer serve semantic, instance and panoptic segmentation; SegFormer, UperNet and others only the semantic one.
"""

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

# Class indices of the stuff categories in the panoptic label sets that checkpoints are trained on.
# fmt: off
ADE20K_STUFF = frozenset({
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79, 84, 91, 94,
    96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
})
# fmt: on
COCO_STUFF = frozenset(range(80, 133))  # COCO lists its things first.
CITYSCAPES_STUFF = frozenset(range(11))  # Cityscapes lists its things last.
STUFF_BY_SIZE = {133: COCO_STUFF, 150: ADE20K_STUFF, 19: CITYSCAPES_STUFF}  # By the number of categories in the label set.


class TransformersSemantic(Pretrained):
    """SegFormer, UperNet, BEiT, DPT, Mask2Former and every other semantic segmenter of transformers.

    Called on images it returns one label map per image, int32 (height, width), of indices into `categories`. The preprocessing and
    `post_process_semantic_segmentation`, which upsamples logits to the image's size before the argmax, are the checkpoint's own.

    Args:
        checkpoint: hub name such as `nvidia/segformer-b0-finetuned-ade-512-512`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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

    Called on images it returns one mapping per image: `masks` (n COCO run lengths), the `boxes` around them, float32 (n, 4) as x1,
    y1, x2, y2 in pixels of the image, `scores` float32 (n,) and `classes` int64 (n,) as indices into `categories`. Masks may
    overlap.

    Args:
        checkpoint: hub name such as `facebook/mask2former-swin-tiny-coco-instance`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        score_threshold: instances with a lower score are dropped; from 0 to 1. 0, the default, keeps all with a mask, as in the
            published AP of these networks.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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
            post_process = _post_processing(self.processor, "post_process_instance_segmentation", "return_binary_maps")
            results = post_process(outputs, threshold=self.score_threshold, target_sizes=sizes, return_binary_maps=True)
        return [_instances(result) for result in results]


class TransformersPanoptic(Pretrained):
    """Panoptic segmentation by Mask2Former, MaskFormer and others of transformers.

    Called on images it returns one mapping per image: `segments` int32 (height, width) with a segment id per pixel and 0 for void,
    `segment_ids` int64 (n,) and `classes` int64 (n,) as indices into `categories`. Each thing is a segment of its own, all stuff of
    one category is one segment.

    Args:
        checkpoint: hub name such as `facebook/mask2former-swin-tiny-coco-panoptic`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        score_threshold: segments with this score or a lower one are dropped; from 0 to 1. 0.5 is the default of transformers,
            Mask2Former's authors use 0.8.
        mask_threshold: weighted probability from which a pixel counts into the full area of a mask; from 0 to 1. 0.5 as used by
            Mask2Former's authors.
        overlap_threshold: share of its full area that a mask must keep beside the other masks, or it is dropped; from 0 to 1. 0.8
            as used by Mask2Former's authors.
        things: names of the categories that are things; only needed for label sets other than COCO, ADE20K and Cityscapes.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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
        """For each category, whether it is a countable thing (True) or stuff (False).

        Raises:
            ModelError: `things` names a category that the checkpoint lacks, or is missing for an unknown label set.
        """
        names = self.categories
        if self.things is not None:
            unknown = sorted(set(self.things) - set(names))
            if unknown:
                raise ModelError(f"things: {self.checkpoint.source} has no category {unknown[0]!r}")
            return [name in self.things for name in names]
        if len(names) not in STUFF_BY_SIZE:
            raise ModelError(f"things: list those of the {len(names)} categories of {self.checkpoint.source} that are things")
        return [index not in STUFF_BY_SIZE[len(names)] for index in range(len(names))]

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, self._segment)

    def _segment(self, images: list[Image]) -> list[dict[str, Any]]:
        import torch

        sizes = [image.shape[:2] for image in images]
        with torch.inference_mode():
            outputs = self.network(**self.inputs(images))
            post_process = _post_processing(self.processor, "post_process_panoptic_segmentation", "label_ids_to_fuse")
            # `_fuse_stuff` fuses instead of transformers, which may give the next segment the id of another after it has fused.
            results = post_process(outputs, label_ids_to_fuse=set(), target_sizes=sizes, **self.thresholds)
        return [_fuse_stuff(result, self.is_thing) for result in results]


def _post_processing(processor: Any, name: str, option: str) -> Callable[..., Any]:
    """A post-processing method of the processor, checked to take the option that the adapter depends on."""
    method = getattr(processor, name, None)
    if method is None or option not in inspect.signature(method).parameters:
        raise ModelError(f"{type(processor).__name__} has no {name} with {option}; take a Mask2Former or MaskFormer checkpoint")
    return method


def _instances(result: dict[str, Any]) -> dict[str, Any]:
    """Convert transformers' binary maps (n, height, width) and their descriptions to the task's format."""
    from pycocotools.mask import toBbox

    descriptions = result["segments_info"]
    masks = encode_masks(result["segmentation"].cpu().numpy().astype(bool)) if descriptions else []
    boxes = np.asarray(toBbox(masks), np.float32).reshape(-1, 4) if masks else np.zeros((0, 4), np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "scores": np.array([description["score"] for description in descriptions], np.float32),
        "classes": np.array([description["label_id"] for description in descriptions], np.int64),
        "masks": masks,
    }


def _fuse_stuff(result: dict[str, Any], is_thing: Sequence[bool]) -> dict[str, Any]:
    """Convert transformers' segments to the task's format, with one segment per stuff category under the id of its first."""
    # transformers fills the map with -1 if it detects no segment.
    segment_map = np.maximum(result["segmentation"].cpu().numpy().astype(np.int32), 0)
    classes: dict[int, int] = {}  # Class of each segment, by new segment id.
    stuff_ids: dict[int, int] = {}  # New segment id of each stuff class.
    new_ids = np.arange(segment_map.max() + 1, dtype=np.int32)
    for segment in result["segments_info"]:
        old_id, class_index = segment["id"], segment["label_id"]
        new_id = old_id if is_thing[class_index] else stuff_ids.setdefault(class_index, old_id)
        new_ids[old_id] = new_id
        classes[new_id] = class_index
    return {
        "segments": new_ids[segment_map],
        "segment_ids": np.array(list(classes), np.int64),
        "classes": np.array(list(classes.values()), np.int64),
    }
