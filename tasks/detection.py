"""Object detection: box AP as COCOeval computes it, in percent.

    images -> model -> boxes, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APs, APm, APl

A model for `detection` returns a dict an image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels, `scores` float32 (n,) and
`classes` int64 (n,) into its `categories`. Its categories are matched with the dataset's by name; boxes of a name that the dataset
does not have are left out. No box at all is AP 0; a size range without a label has no AP (NaN).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks import drawing
from icmbench.tasks.base import Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task
from icmbench.tasks.matching import Detections, Labels, Matches, ap_scores, box_overlap, match

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

METRICS = tuple(MetricSpec(name, "%", primary=name == "AP", ceiling=100.0) for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"))


class Detection(Task):
    """Object detection: box AP, AP50, AP75 and AP of small, medium and large objects, as COCOeval.

    pseudo_threshold: with `reference: original`, boxes on the original with at least this score are the labels.
    """

    name = "detection"
    annotation = "instances"
    extra: ClassVar[str] = "coco"
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels", pseudo_threshold: float = 0.3) -> None:
        super().__init__(dataset, model, reference)
        self.pseudo_threshold = pseudo_threshold
        known: list[str] = list(model.categories)
        if reference == "labels" and self.ids:
            self._categories: list[str] = list(dataset.categories("instances"))  # type: ignore[attr-defined]
            self._meaning = meaning(known, self._categories)
        else:
            self._categories, self._meaning = known, np.arange(len(known))

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        numbers = pa.list_(pa.float32())
        return pa.schema([("boxes", numbers), ("scores", numbers), ("classes", pa.list_(pa.int32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`boxes` as n times x1, y1, x2, y2; `scores`; `classes` into the model's categories; in the model's order."""
        return [flat(found, image_id) for found, image_id in zip(self.model(images), ids, strict=True)]

    def is_empty(self, prediction: Prediction) -> bool:
        return len(prediction["scores"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The boxes on the originals from `pseudo_threshold` up."""
        targets: list[Target] = []
        for prediction in predictions:
            sure = np.asarray(prediction["scores"]) >= self.pseudo_threshold
            boxes = xywh(prediction["boxes"])[sure]
            targets.append(
                {
                    "boxes": boxes,
                    "classes": np.asarray(prediction["classes"], dtype=np.int64)[sure],
                    "areas": boxes[:, 2] * boxes[:, 3],
                    "crowd": np.zeros(len(boxes), dtype=bool),
                }
            )
        return targets

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Matches:
        """Matches of all images; of equal scores the image with the lower `image_id` comes first, as in COCOeval."""
        order = in_order(targets)
        found = xywh(np.concatenate([np.zeros(0, np.float32), *(predictions[k]["boxes"] for k in order)]))
        wanted = np.concatenate([np.zeros((0, 4)), *(targets[k]["boxes"] for k in order)])
        detections, kept = flat_detections([predictions[k] for k in order], self._meaning, found[:, 2] * found[:, 3])
        labels = flat_labels([targets[k] for k in order])
        overlap = box_overlap(found[kept], wanted, labels.crowd)
        return match(detections, labels, overlap, order, len(self._categories))

    def aggregate(self, statistics: Matches, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return ap_scores(statistics, weights)

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """Boxes from `pseudo_threshold` up with their names and scores."""
        sure = np.asarray(prediction["scores"]) >= self.pseudo_threshold
        corners = np.reshape(prediction["boxes"], (-1, 4))[sure]
        classes, scores = np.asarray(prediction["classes"])[sure], np.asarray(prediction["scores"])[sure]
        names = [f"{self.model.categories[index]} {score:.2f}" for index, score in zip(classes, scores)]
        return drawing.boxes(image, corners, names, classes)


def meaning(known: Sequence[str], wanted: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each category that the model knows, its index among the dataset's, by name in any case; -1 where it has none.

    Raises DatasetError where no name is shared.
    """
    places = {_plain(name): index for index, name in enumerate(wanted)}
    found = np.array([places.get(_plain(name), -1) for name in known], dtype=np.int64)
    if not (found >= 0).any():
        raise DatasetError(
            f"the model's categories ({_some(known)}) and the dataset's ({_some(wanted)}) have no name in common; "
            "use a model of these categories, or reference: original"
        )
    foreign = [name for name, index in zip(known, found) if index < 0]
    if foreign:
        log.info("boxes of %d categories that the dataset does not have are left out: %s", len(foreign), ", ".join(foreign))
    unseen = [name for index, name in enumerate(wanted) if index not in found]
    if unseen:
        log.warning("the model does not know %d of the dataset's categories, their AP is 0: %s", len(unseen), ", ".join(unseen))
    return found


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def flat(found: dict[str, Any], image_id: str) -> dict[str, Any]:
    """A model's boxes, scores and classes of one image as 1-D arrays. Raises ValueError where they do not fit together."""
    boxes = np.asarray(found["boxes"], dtype=np.float32)
    scores, classes = np.asarray(found["scores"], dtype=np.float32), np.asarray(found["classes"], dtype=np.int32)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1 or classes.shape != scores.shape:
        raise ValueError(f"{image_id}: the model gave boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"{image_id}: the model gave boxes or scores that are not finite")
    return {"boxes": boxes.ravel(), "scores": scores, "classes": classes}


def xywh(corners: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Boxes x1, y1, x2, y2, flat or (n, 4), as x, y, width, height (n, 4)."""
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def in_order(targets: Sequence[Target]) -> list[int]:
    """Indices of the images by `image_id`, where they have one: COCOeval breaks ties of scores in this order."""
    return sorted(range(len(targets)), key=lambda k: targets[k].get("image_id", k))


def flat_detections(
    predictions: Sequence[Prediction], known: npt.NDArray[np.int64], areas: npt.NDArray[np.float64]
) -> tuple[Detections, npt.NDArray[np.bool_]]:
    """Detections of all images, those of foreign categories left out; and which were kept. areas: float64, of all detections."""
    images = np.repeat(np.arange(len(predictions)), [len(prediction["scores"]) for prediction in predictions])
    scores = np.concatenate([np.zeros(0, np.float32), *(prediction["scores"] for prediction in predictions)])
    named = np.concatenate([np.zeros(0, np.int32), *(prediction["classes"] for prediction in predictions)])
    classes = known[named]
    kept = classes >= 0
    return Detections(images[kept], classes[kept], areas[kept], scores[kept]), kept


def flat_labels(targets: Sequence[Target]) -> Labels:
    """Labels of all images; crowds are ignored."""
    images = np.repeat(np.arange(len(targets)), [len(target["classes"]) for target in targets])
    classes = np.concatenate([np.zeros(0, np.int64), *(target["classes"] for target in targets)])
    areas = np.concatenate([np.zeros(0), *(target["areas"] for target in targets)])
    crowd = np.concatenate([np.zeros(0, bool), *(target["crowd"] for target in targets)])
    return Labels(images, classes, areas, crowd, crowd)
