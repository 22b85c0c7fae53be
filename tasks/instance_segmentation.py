"""Instance segmentation: mask AP as COCOeval computes it, in percent, or the mean mask AP of the Open Images challenge.

    images -> model -> masks, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APs, APm, APl
                                              -> entries (openimages_matching.py)      -> mAP (openimages_ap.py)

A model for `instance_segmentation` returns what a model for `detection` returns, and `masks`: n COCO run lengths, each
`{"size": [height, width], "counts": bytes}`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Image, Prediction, Reference, Target
from icmbench.tasks.datasets.openimages_masks import StoredMask
from icmbench.tasks.datasets.run_length_boxes import check_run_lengths
from icmbench.tasks.datasets.segmentations import MIN_NUMBERS, all_full_polygons, full_polygons, problem
from icmbench.tasks.detection import Detection, ScoringRules
from icmbench.tasks.maps import paint
from icmbench.tasks.openimages_ap import mask_entries
from icmbench.tasks.openimages_matching import Entries
from icmbench.tasks.outputs import ObjectOutput
from icmbench.tasks.overlaps import Overlap, mask_overlap

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


class InstanceSegmentation(Detection):
    """Instance segmentation: mask AP, AP50, AP75 and AP of small, medium and large objects, as COCOeval; or mAP of Open Images.

    Args:
        dataset: a dataset with `instances`; with `reference: original` any dataset.
        model: a model for `instance_segmentation`.
        reference: "labels" or "original".
        pseudo_threshold: as in `Detection`, for objects.
        metric: as in `Detection`.
        mapping: as in `Detection`.

    Raises:
        DatasetError: as in `Detection`, or the dataset has no masks; or a segmentation cannot become a mask, or run lengths do not
            fit their boxes (`datasets/run_length_boxes.py`). Polygons of fewer than three points are left out, and a warning says
            how many.
    """

    name = "instance_segmentation"

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference = "labels",
        pseudo_threshold: float = 0.3,
        metric: ScoringRules | None = None,
        mapping: dict[str, str] | None = None,
    ) -> None:
        super().__init__(dataset, model, reference, pseudo_threshold, metric, mapping)
        if reference == "labels" and self.ids and self.metric == "openimages":
            if any("masks" not in target for target in super().targets(self.ids[:1])):
                raise DatasetError(f"dataset {dataset.name!r} was given no masks; add the key `masks` and their file")
        elif reference == "labels" and self.ids:
            targets = super().targets(self.ids)
            check_segmentations(dataset.name, self.ids, targets)
            check_run_lengths(str(targets[0].get("annotated_in", f"dataset {dataset.name!r}")), self.ids, targets)

    @property
    def schema(self) -> pa.Schema:
        """Detection's columns, the image's size, and the masks."""
        import pyarrow as pa

        sizes = [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
        return pa.schema([*super().schema, *sizes, pa.field("masks", pa.list_(pa.binary()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Detection's columns, and `masks`: the `counts` of compressed run lengths of `height` x `width`.

        Raises:
            ModelError: as in `Detection`, or a mask is missing, of another size than the image, or does not add up to its pixels.
        """
        output, categories = ObjectOutput(self.model), len(self.model.categories)
        predictions: list[Prediction] = []
        for image, objects, image_id in zip(images, output.one_each(self.model(images), ids), ids, strict=True):
            columns = output.objects(objects, image_id, categories)
            size = {"height": image.shape[0], "width": image.shape[1]}
            predictions.append({**columns, **size, "masks": output.masks(objects, image, image_id)})
        return predictions

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The dataset's labels, and `masks`: their run lengths, made once for all codecs; None for a label that has no mask."""
        if self.metric == "openimages":
            return [{**target, "masks": _drawn(target)} for target in super().targets(ids)]
        return [
            {**target, "masks": [run_lengths(shape, target["height"], target["width"]) for shape in target["segmentations"]]}
            for target in super().targets(ids)
        ]

    def _pseudo_target(self, prediction: Prediction, confident: npt.NDArray[np.bool_]) -> dict[str, Any]:
        if self.metric == "openimages":  # To which a label without a pixel is one that has no mask.
            confident = confident & (_areas(_masks(prediction)) > 0)
        masks = [mask for mask, keep in zip(_masks(prediction), confident, strict=True) if keep]
        return super()._pseudo_target(prediction, confident) | {"masks": masks, "areas": _areas(masks)}

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        for prediction, target in zip(predictions, targets, strict=True):
            size = [prediction["height"], prediction["width"]]
            if any(list(mask["size"]) != size for mask in target["masks"]):
                raise DatasetError(
                    f"{target.get('annotated_in', self.dataset.name)}: the labels of image {target.get('image_id')} are not of its "
                    f"{size[1]}x{size[0]} pixels; give the photographs that were annotated"
                )
        masks = [mask for prediction in predictions for mask in _masks(prediction)]
        label_masks = [mask for target in targets for mask in target["masks"]]
        return mask_overlap(masks, label_masks, self._crowd(targets)), _areas(masks)

    def _entries(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Entries:
        return mask_entries(predictions, targets, self._category_map, len(self._categories), self.group_weight)

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the masks and boxes of a score of at least `pseudo_threshold`."""
        from pycocotools.mask import decode

        labels = np.full(image.shape[:2], -1, dtype=np.int64)
        for mask, index, keep in zip(_masks(prediction), prediction["classes"], self._confident(prediction), strict=True):
            if keep:
                labels[decode(mask).astype(bool)] = index
        return super().draw(paint(image, labels), prediction)


def check_segmentations(dataset: str, ids: Sequence[str], targets: Sequence[Target]) -> None:
    """Check that masks can be made of all segmentations, and warn of polygons of fewer than three points, which are left out.

    Args:
        dataset: the dataset's name, for messages about targets that do not say which file they are from.
        ids: image ids.
        targets: labels of these images, as a dataset gives them for `instances`.

    Raises:
        DatasetError: a segmentation is missing, or pycocotools could not make a mask of it.
    """
    polygons = [shape for target in targets for shape in target["segmentations"] if type(shape) is not dict]
    sound = all_full_polygons(polygons, min((max(target["height"], target["width"]) for target in targets), default=0))
    dropped: dict[str, int] = {}
    for image_id, target in zip(ids, targets, strict=True):
        source = str(target.get("annotated_in", f"dataset {dataset!r}"))
        for number, shape in enumerate(target["segmentations"]):
            if sound and type(shape) is list:
                continue
            wrong = problem(shape, target["height"], target["width"])
            if wrong is not None:
                named = f"annotation {target['ids'][number]}" if "ids" in target else f"object {number}"
                raise DatasetError(f"{source}: {named} of image {image_id!r}: the `segmentation` {wrong}; correct or remove it")
            if type(shape) is list:
                dropped[source] = dropped.get(source, 0) + sum(len(polygon) < MIN_NUMBERS for polygon in shape)
    for source, count in dropped.items():
        if count:
            log.warning("%s: %d polygons of fewer than three points cover nothing and are left out", source, count)


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
        return dict(merge(frPyObjects(full_polygons(segmentation), height, width)))
    if isinstance(segmentation["counts"], list):
        return dict(frPyObjects(segmentation, height, width))
    return dict(segmentation)


def _drawn(target: Target) -> list[dict[str, Any] | None]:
    """The run lengths of Open Images' labels, read where the dataset left them on disk."""
    size = (target["height"], target["width"])
    return [mask.run_lengths(size) if isinstance(mask, StoredMask) else mask for mask in target["masks"]]


def _masks(prediction: Prediction) -> list[dict[str, Any]]:
    size = [int(prediction["height"]), int(prediction["width"])]
    return [{"size": size, "counts": counts} for counts in prediction["masks"]]


def _areas(masks: list[dict[str, Any]]) -> npt.NDArray[np.float64]:
    """Number of pixels of each mask, float64 (n,)."""
    from pycocotools.mask import area

    return np.array([area(mask) for mask in masks], dtype=np.float64)  # One by one: pycocotools 2.0 overflows on lists of over 255.
