"""Person keypoints: keypoint AP as COCOeval computes it from object keypoint similarity, in percent.

    images -> model -> keypoints, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APm, APl

A model for `keypoints` returns what a model for `detection` returns, and `keypoints` float32 (n, 17, 3): x and y in pixels and a
score, in COCO's order. The area of a detection, which decides its size range, is that of the rectangle around its keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Image, Prediction, Reference, Target
from icmbench.tasks.detection import Detection, ap_metrics, flat_column
from icmbench.tasks.drawing import draw_points
from icmbench.tasks.matching import AREAS
from icmbench.tasks.outputs import ObjectOutput
from icmbench.tasks.overlaps import COCO_SIGMAS, Overlap, keypoint_overlap

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = len(COCO_SIGMAS)
VISIBLE = 2  # COCO's visibility of a labelled keypoint that is not occluded.


class Keypoints(Detection):
    """Person keypoints: keypoint AP, AP50, AP75 and AP of medium and large persons, as COCOeval.

    Args:
        dataset: a dataset with `keypoints`; with `reference: original` any dataset.
        model: a model for `keypoints`.
        reference: "labels" or "original".
        pseudo_threshold: as in `Detection`, for persons. All keypoints of a pseudo-label count as visible, and its box gives its
            area.
    """

    name = "keypoints"
    annotation = "keypoints"
    metrics = ap_metrics("all", "medium", "large")
    areas: ClassVar[Mapping[str, tuple[float, float]]] = {name: AREAS[name] for name in ("all", "medium", "large")}
    detection_limit = 20

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels", pseudo_threshold: float = 0.3) -> None:
        super().__init__(dataset, model, reference, pseudo_threshold, metric="coco")
        if reference == "labels":
            for image_id, target in zip(self.ids, self.targets(self.ids), strict=True):
                shape = np.shape(target["keypoints"])
                if len(shape) != 3 or shape[1:] != (POINTS, 3):
                    source = target.get("annotated_in", f"dataset {dataset.name!r}")
                    raise DatasetError(
                        f"{source}: the keypoints of image {image_id!r} are {shape}, not x, y and visibility of COCO's {POINTS} "
                        "keypoints of a person, which this task scores; give annotations of these"
                    )

    @property
    def schema(self) -> pa.Schema:
        """Detection's columns and the keypoints, flat."""
        import pyarrow as pa

        return pa.schema([*super().schema, pa.field("keypoints", pa.list_(pa.float32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Detection's columns, and `keypoints`: n times 17 times x, y, score.

        Raises:
            ModelError: as in `Detection`, or the keypoints of an object are missing or not finite.
        """
        output, categories = ObjectOutput(self.model), len(self.model.categories)
        predictions: list[Prediction] = []
        for persons, image_id in zip(output.one_each(self.model(images), ids), ids, strict=True):
            columns = output.objects(persons, image_id, categories)
            predictions.append({**columns, "keypoints": output.keypoints(persons, image_id, POINTS).ravel()})
        return predictions

    def _pseudo_target(self, prediction: Prediction, confident: npt.NDArray[np.bool_]) -> dict[str, Any]:
        points = _points(prediction["keypoints"])[confident]
        points[..., 2] = VISIBLE
        return super()._pseudo_target(prediction, confident) | {"keypoints": points, "labelled": np.full(len(points), POINTS)}

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        points = _points(flat_column(predictions, "keypoints", np.float32))
        label_points = _points(flat_column(targets, "keypoints", np.float64))
        boxes, areas = flat_column(targets, "boxes", np.float64).reshape(-1, 4), flat_column(targets, "areas", np.float64)
        return keypoint_overlap(points, label_points, boxes, areas), np.ptp(points[..., :2], axis=1).prod(axis=-1)

    def _ignored(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        """Persons without a labelled keypoint are ignored too."""
        return super()._ignored(targets) | (flat_column(targets, "labelled", np.int64) == 0)

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the boxes and keypoints of a score of at least `pseudo_threshold`."""
        confident = self._confident(prediction)
        return draw_points(super().draw(image, prediction), _points(prediction["keypoints"])[confident][..., :2])


def _points(flat: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """float64 (n, 17, 3)."""
    return np.array(flat, dtype=np.float64).reshape(-1, POINTS, 3)
