"""Instance segmentation: mask AP as COCOeval computes it, in percent.

    images -> model -> masks, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APs, APm, APl

A model for `instance_segmentation` returns what a model for `detection` returns, and `masks`: n COCO run lengths, each
`{"size": [height, width], "counts": bytes}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, Prediction, Target
from icmbench.tasks.detection import Detection
from icmbench.tasks.maps import paint
from icmbench.tasks.overlaps import Overlap, mask_overlap

if TYPE_CHECKING:
    import pyarrow as pa


class InstanceSegmentation(Detection):
    """Instance segmentation: mask AP, AP50, AP75 and AP of small, medium and large objects, as COCOeval.

    Args:
        dataset: a dataset with `instances`; with `reference: original` any dataset.
        model: a model for `instance_segmentation`.
        reference: "labels" or "original".
        pseudo_threshold: as in `Detection`, for objects.
    """

    name = "instance_segmentation"

    @property
    def schema(self) -> pa.Schema:
        """Detection's columns, the image's size, and the masks."""
        import pyarrow as pa

        sizes = [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
        return pa.schema([*super().schema, *sizes, pa.field("masks", pa.list_(pa.binary()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Detection's columns, and `masks`: the `counts` of compressed run lengths of `height` x `width`."""
        predictions: list[Prediction] = []
        for image, output, image_id in zip(images, self.model(images), ids, strict=True):
            size = list(image.shape[:2])
            if len(output["masks"]) != len(output["scores"]) or any(list(mask["size"]) != size for mask in output["masks"]):
                raise ValueError(f"{image_id}: the model gave {len(output['masks'])} masks that do not fit its scores or the image")
            counts = [mask["counts"] for mask in output["masks"]]
            predictions.append(self._flat_boxes(output, image_id) | {"height": size[0], "width": size[1], "masks": counts})
        return predictions

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The dataset's labels, and `masks`: their run lengths, made once for all codecs."""
        return [
            {**target, "masks": [run_lengths(shape, target["height"], target["width"]) for shape in target["segmentations"]]}
            for target in super().targets(ids)
        ]

    def _pseudo_target(self, prediction: Prediction, confident: npt.NDArray[np.bool_]) -> dict[str, Any]:
        masks = [mask for mask, keep in zip(_masks(prediction), confident, strict=True) if keep]
        return super()._pseudo_target(prediction, confident) | {"masks": masks, "areas": _areas(masks)}

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        masks = [mask for prediction in predictions for mask in _masks(prediction)]
        label_masks = [mask for target in targets for mask in target["masks"]]
        return mask_overlap(masks, label_masks, self._crowd(targets)), _areas(masks)

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the masks and boxes of a score of at least `pseudo_threshold`."""
        from pycocotools.mask import decode

        labels = np.full(image.shape[:2], -1, dtype=np.int64)
        for mask, index, keep in zip(_masks(prediction), prediction["classes"], self._confident(prediction), strict=True):
            if keep:
                labels[decode(mask).astype(bool)] = index
        return super().draw(paint(image, labels), prediction)


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of a segmentation.

    Args:
        segmentation: COCO's form of it: a list of polygons, or a dict of run lengths, compressed or not.
        height: pixels of the image.
        width: pixels of the image.

    Returns:
        `{"size": [height, width], "counts": bytes}`.
    """
    from pycocotools.mask import frPyObjects, merge

    if isinstance(segmentation, list):
        return dict(merge(frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return dict(frPyObjects(segmentation, height, width))
    return dict(segmentation)


def _masks(prediction: Prediction) -> list[dict[str, Any]]:
    size = [int(prediction["height"]), int(prediction["width"])]
    return [{"size": size, "counts": counts} for counts in prediction["masks"]]


def _areas(masks: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """Number of pixels of each mask, float64 (n,)."""
    from pycocotools.mask import area

    return np.array([area(mask) for mask in masks], dtype=np.float64)  # One by one: pycocotools 2.0 overflows on lists of over 255.
