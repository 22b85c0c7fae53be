"""Object detection: box AP as COCOeval computes it, in percent.

    images -> model -> boxes, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APs, APm, APl

A model for `detection` returns a dict an image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels, `scores` float32 (n,) and
`classes` int64 (n,) into its `categories`. Its categories are matched with the dataset's by name; boxes of a name that the dataset
does not have are left out. No box at all is AP 0; a size range without a label has no AP (NaN).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks import drawing
from icmbench.tasks.base import Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task
from icmbench.tasks.matching import AREAS, Detections, Labels, Matches, Overlap, ap_scores, box_overlap, match

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def ap_metrics(*areas: str) -> tuple[MetricSpec, ...]:
    """AP, AP50, AP75 and one for each area range after the first."""
    names = ("AP", "AP50", "AP75", *(f"AP{area[0]}" for area in areas[1:]))
    return tuple(MetricSpec(name, "%", primary=name == "AP", ceiling=100.0) for name in names)


class Detection(Task):
    """Object detection: box AP, AP50, AP75 and AP of small, medium and large objects, as COCOeval.

    pseudo_threshold: with `reference: original`, boxes on the original with at least this score are the labels.
    """

    name = "detection"
    annotation = "instances"
    extra: ClassVar[str] = "coco"
    metrics = ap_metrics(*AREAS)
    areas: ClassVar[Mapping[str, tuple[float, float]]] = AREAS
    limit: ClassVar[int] = 100  # detections of an image and category that count

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels", pseudo_threshold: float = 0.3) -> None:
        super().__init__(dataset, model, reference)
        self.pseudo_threshold = pseudo_threshold
        known: list[str] = list(model.categories)
        if reference == "labels" and self.ids:
            self._categories: list[str] = list(dataset.categories(self.annotation))  # type: ignore[attr-defined]
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
        return [self._boxes(found, image_id) for found, image_id in zip(self.model(images), ids, strict=True)]

    def _boxes(self, found: Mapping[str, Any], image_id: str) -> dict[str, Any]:
        """A model's boxes, scores and classes of one image as 1-D arrays. Raises ValueError where they do not fit together."""
        boxes = np.asarray(found["boxes"], dtype=np.float32)
        scores, classes = np.asarray(found["scores"], dtype=np.float32), np.asarray(found["classes"], dtype=np.int32)
        if boxes.shape != (len(scores), 4) or scores.ndim != 1 or classes.shape != scores.shape:
            raise ValueError(f"{image_id}: the model gave boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"{image_id}: the model gave boxes or scores that are not finite")
        return {"boxes": boxes.ravel(), "scores": scores, "classes": classes}

    def is_empty(self, prediction: Prediction) -> bool:
        return len(prediction["scores"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The objects on the originals from `pseudo_threshold` up."""
        return [self._pseudo_target(prediction, self._sure(prediction)) for prediction in predictions]

    def _sure(self, prediction: Prediction) -> npt.NDArray[np.bool_]:
        return np.asarray(prediction["scores"]) >= self.pseudo_threshold

    def _pseudo_target(self, prediction: Prediction, sure: npt.NDArray[np.bool_]) -> dict[str, Any]:
        boxes = xywh(prediction["boxes"])[sure]
        return {
            "boxes": boxes,
            "classes": np.asarray(prediction["classes"], dtype=np.int64)[sure],
            "areas": boxes[:, 2] * boxes[:, 3],
            "crowd": np.zeros(len(boxes), dtype=bool),
        }

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Matches:
        """Matches of all images; of equal scores the image with the lower `image_id` comes first, as in COCOeval."""
        order = sorted(range(len(targets)), key=lambda k: targets[k].get("image_id", k))
        predictions, targets = [predictions[k] for k in order], [targets[k] for k in order]
        overlap, areas = self._overlap(predictions, targets)
        detections = Detections(
            np.repeat(np.arange(len(order)), [len(prediction["scores"]) for prediction in predictions]),
            self._meaning[joined(predictions, "classes", np.int64)],
            areas,
            joined(predictions, "scores", np.float32),
        )
        labels = Labels(
            np.repeat(np.arange(len(order)), [len(target["classes"]) for target in targets]),
            joined(targets, "classes", np.int64),
            joined(targets, "areas", np.float64),
            self._crowd(targets),
            self._ignored(targets),
        )
        return match(detections, labels, overlap, order, len(self._categories), self.areas, self.limit)

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        """IoU of all detections with all labels, and the detections' areas."""
        found = xywh(joined(predictions, "boxes", np.float32))
        wanted = joined(targets, "boxes", np.float64).reshape(-1, 4)
        return box_overlap(found, wanted, self._crowd(targets)), found[:, 2] * found[:, 3]

    def _crowd(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        return joined(targets, "crowd", np.bool_)

    def _ignored(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        """Labels that count neither as found nor as missed."""
        return self._crowd(targets)

    def aggregate(self, statistics: Matches, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return ap_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """Categories of the objects from `pseudo_threshold` up."""
        return [self.model.categories[index] for index in np.asarray(prediction["classes"])[self._sure(prediction)]]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """Boxes from `pseudo_threshold` up with their names and scores."""
        sure = self._sure(prediction)
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


def xywh(corners: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Boxes x1, y1, x2, y2, flat or (n, 4), as x, y, width, height (n, 4)."""
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def joined(rows: Sequence[Mapping[str, Any]], name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A column of all images end to end, flat."""
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(row[name]) for row in rows)]).astype(dtype, copy=False)
