"""Object detection: box AP as COCOeval computes it, in percent, or the mean AP of the Open Images challenge.

    images -> model -> boxes, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APs, APm, APl
                                              -> entries (openimages_matching.py)      -> mAP (openimages_ap.py)

A model for `detection` returns one dict per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels, `scores` float32 (n,) and
`classes` int64 (n,), indices into its attribute `categories`. Its categories are matched with the dataset's by name, and boxes of
categories that the dataset does not have are left out. Labels without any detection give AP 0; a size range without a label has
no AP (NaN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import (
    Dataset,
    DatasetError,
    Image,
    MetricSpec,
    Prediction,
    Reference,
    Target,
    Task,
    labelled,
    takes_batches,
)
from icmbench.tasks.categories import match_shared_categories
from icmbench.tasks.drawing import draw_boxes
from icmbench.tasks.matches import Matches
from icmbench.tasks.matching import AREAS, Detections, Labels, ap_scores, match
from icmbench.tasks.openimages_ap import METRICS, box_entries, challenge_scores, lacking_key
from icmbench.tasks.openimages_matching import Entries
from icmbench.tasks.outputs import ObjectOutput
from icmbench.tasks.overlaps import Overlap, box_overlap

if TYPE_CHECKING:
    import pyarrow as pa

# The rules by which detections are matched and scored.
ScoringRules: TypeAlias = Literal["coco", "openimages"]


def ap_metrics(*areas: str) -> tuple[MetricSpec, ...]:
    """AP, AP50 and AP75 of the first area range, and AP of each of the others, named by its first letter."""
    names = ("AP", "AP50", "AP75", *(f"AP{area[0]}" for area in areas[1:]))
    return tuple(MetricSpec(name, "%", primary=name == "AP", ceiling=100.0) for name in names)


class Detection(Task):
    """Object detection: box AP, AP50, AP75 and AP of small, medium and large objects, as COCOeval; or mAP of Open Images.

    The challenge of Open Images is a metric of this task and no task of its own, because what a model is asked and what is stored
    of it are the same: one set of predictions serves both, and every detector can be scored by both.

    MPEG's conditions for machines run COCO's detectors on Open Images, whose tables they wrote in COCO's names: names are equal in
    lower case with underscores for blanks, and other classes of the detector are dropped, as `_normalize_labelname` and `digest` of
    `OpenImagesChallengeEval` in InterDigitalInc/CompressAI-Vision have it (compressai_vision/evaluators/evaluators.py, commit
    31165da). Names are matched so here too; tables with Open Images' own names need a `mapping`.

    Args:
        dataset: a dataset with `instances`; with `reference: original` any dataset.
        model: a model for `detection`.
        reference: "labels" or "original".
        pseudo_threshold: score from which boxes on the original are its labels with `reference: original`, and from which boxes
            are drawn and named in the report. 0..1; 0.3 drops most false boxes of common detectors.
        metric: "coco", or "openimages" for the mean AP at IoU 0.5 of the Open Images challenge. By default the one that the
            dataset's labels are made for, and "coco" with `reference: original`, where "openimages" takes every class as looked
            for, and no box as a group.
        mapping: the dataset's name of categories of the model that have another name there, such as {cell phone: Mobile phone}.
            Others are matched by equal names.

    Attributes:
        areas: area ranges that have an AP, in square pixels.
        detection_limit: how many detections of an image and category count, the highest scores first.
        group_weight: how much a labelled group counts in Open Images' mAP.

    Raises:
        DatasetError: model and dataset share no category, the mapping holds another name than theirs, or the metric is not the one
            that the labels are made for.
    """

    name = "detection"
    annotation = "instances"
    draws = True
    has_pseudo_labels = True
    extra: ClassVar[str] = "coco"
    metrics: Sequence[MetricSpec] = ap_metrics(*AREAS)
    areas: ClassVar[Mapping[str, tuple[float, float]]] = AREAS
    detection_limit: ClassVar[int] = 100
    group_weight: ClassVar[float] = 1.0

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference = "labels",
        pseudo_threshold: float = 0.3,
        metric: ScoringRules | None = None,
        mapping: dict[str, str] | None = None,
    ) -> None:
        super().__init__(dataset, model, reference)
        self.pseudo_threshold = pseudo_threshold
        # Merging knows the original's predictions without the dataset, so that its labels do not decide about those.
        self.metric = metric or (getattr(dataset, "scoring_rules", "coco") if reference == "labels" else "coco")
        if self.metric == "openimages":
            self.metrics = METRICS
        model_categories: list[str] = list(model.categories)
        if reference == "labels" and self.ids:
            assert self.annotation is not None
            self._categories = list(labelled(dataset, self.name, "categories").categories(self.annotation))
            self._category_map = match_shared_categories(model_categories, self._categories, mapping)
            self._refuse_other_metric()
        elif mapping and reference == "original":
            raise DatasetError("mapping: on originals the model's own names are compared; leave the key out")
        else:
            self._categories, self._category_map = model_categories, np.arange(len(model_categories))

    def _refuse_other_metric(self) -> None:
        """Raise DatasetError if the labels are not made for the metric."""
        assert self.annotation is not None
        (target,) = self.dataset.targets(self.annotation, self.ids[:1])
        made_for = getattr(self.dataset, "scoring_rules", "coco")
        lacking = lacking_key(target) if self.metric == "openimages" else None
        if lacking is not None or (self.metric == "coco" and made_for == "openimages"):
            problem = f"have no {lacking!r}" if lacking is not None else "say only of some classes what is in each image"
            raise DatasetError(
                f"task {self.name!r}: the labels of dataset {self.dataset.name!r} {problem}, so that metric: {self.metric} would "
                "give wrong numbers; leave out the key `metric`"
            )

    @property
    def schema(self) -> pa.Schema:
        """`boxes`, `scores` and `classes`, flat."""
        import pyarrow as pa

        numbers = pa.list_(pa.float32())
        return pa.schema([("boxes", numbers), ("scores", numbers), ("classes", pa.list_(pa.int32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """In the model's order: `boxes`, n times x1, y1, x2, y2; `scores`; `classes`, indices into the model's categories.

        Raises:
            ModelError: the model gave other than finite boxes and scores of its categories for each image.
        """
        output, categories = ObjectOutput(self.model), len(self.model.categories)
        listed = zip(output.one_each(self.model(images), ids), ids, strict=True)
        return [output.objects(objects, image_id, categories) for objects, image_id in listed]

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether the model detects nothing."""
        return len(prediction["scores"]) == 0

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The objects on the originals with a score of at least `pseudo_threshold`."""
        return [self._pseudo_target(prediction, self._confident(prediction)) for prediction in predictions]

    def _confident(self, prediction: Prediction) -> npt.NDArray[np.bool_]:
        """bool (n,): which detections have a score of at least `pseudo_threshold`."""
        return np.asarray(prediction["scores"]) >= self.pseudo_threshold

    def _pseudo_target(self, prediction: Prediction, confident: npt.NDArray[np.bool_]) -> dict[str, Any]:
        boxes = xywh(prediction["boxes"])[confident]
        return {
            "boxes": boxes,
            "classes": np.asarray(prediction["classes"], dtype=np.int64)[confident],
            "areas": boxes[:, 2] * boxes[:, 3],
            "crowd": np.zeros(len(boxes), dtype=bool),
            **(self._challenge_target(prediction, confident) if self.metric == "openimages" else {}),
        }

    def _challenge_target(self, prediction: Prediction, confident: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """What labels for Open Images' metric have beside those of COCO; pixels serve as shares of sides of 1."""
        corners = np.reshape(np.asarray(prediction["boxes"], dtype=np.float64), (-1, 4))[confident]
        verified = np.arange(len(self._categories))
        return {"corners": corners, "group": np.zeros(len(corners), dtype=bool), "verified": verified, "height": 1, "width": 1}

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Matches | Entries:
        """Matches of all images. Among equal scores the image with the lower `image_id` comes first, as in COCOeval."""
        if self.metric == "openimages":
            return self._entries(predictions, targets)
        order = sorted(range(len(targets)), key=lambda k: targets[k].get("image_id", k))
        predictions, targets = [predictions[k] for k in order], [targets[k] for k in order]
        overlap, areas = self._overlap(predictions, targets)
        detections = Detections(
            np.repeat(np.arange(len(order)), [len(prediction["scores"]) for prediction in predictions]),
            self._category_map[flat_column(predictions, "classes", np.int64)],
            areas,
            flat_column(predictions, "scores", np.float32),
        )
        labels = Labels(
            np.repeat(np.arange(len(order)), [len(target["classes"]) for target in targets]),
            flat_column(targets, "classes", np.int64),
            flat_column(targets, "areas", np.float64),
            self._crowd(targets),
            self._ignored(targets),
        )
        return match(detections, labels, overlap, order, len(self._categories), self.areas, self.detection_limit)

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        """IoU of all detections with all labels, and the detections' areas, float64 (n,) in square pixels."""
        boxes = xywh(flat_column(predictions, "boxes", np.float32))
        label_boxes = flat_column(targets, "boxes", np.float64).reshape(-1, 4)
        return box_overlap(boxes, label_boxes, self._crowd(targets)), boxes[:, 2] * boxes[:, 3]

    def _entries(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Entries:
        """What images contribute to Open Images' mAP."""
        return box_entries(predictions, targets, self._category_map, len(self._categories), self.group_weight)

    def _crowd(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        return flat_column(targets, "crowd", np.bool_)

    def _ignored(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        """bool (labels,): which labels count neither as detected nor as missed."""
        return self._crowd(targets)

    @takes_batches
    def aggregate(self, statistics: Matches | Entries, weights: npt.NDArray[np.float64] | None = None) -> dict[str, Any]:
        """AP by name, in percent; also of many replicates at once, with weights (replicates, images); see `matching.ap_scores`."""
        return challenge_scores(statistics, weights) if isinstance(statistics, Entries) else ap_scores(statistics, weights)

    def names(self, prediction: Prediction) -> list[str]:
        """Categories of the objects with a score of at least `pseudo_threshold`."""
        return [self.model.categories[index] for index in np.asarray(prediction["classes"])[self._confident(prediction)]]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the boxes of a score of at least `pseudo_threshold`, their names and scores."""
        confident = self._confident(prediction)
        corners = np.reshape(prediction["boxes"], (-1, 4))[confident]
        classes, scores = np.asarray(prediction["classes"])[confident], np.asarray(prediction["scores"])[confident]
        names = [f"{self.model.categories[index]} {score:.2f}" for index, score in zip(classes, scores)]
        return draw_boxes(image, corners, names, classes)


def xywh(corners: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Boxes as corner and size.

    Args:
        corners: x1, y1, x2, y2 of n boxes, (n, 4) or flat.

    Returns:
        float64 (n, 4), x, y, width, height.
    """
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def flat_column(rows: Sequence[Mapping[str, Any]], name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """One column of all predictions or targets, end to end, as a 1-D array."""
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(row[name]) for row in rows)]).astype(dtype, copy=False)
