"""Person keypoints: keypoint AP as COCOeval computes it from object keypoint similarity, in percent.

    images -> model -> keypoints, scores, classes -> matches with the labels (matching.py) -> AP, AP50, AP75, APm, APl

A model for `keypoints` returns what one for `detection` does, with `keypoints` float32 (n, 17, 3): x and y in pixels and a score,
in COCO's order. A detection's area, which decides its size range, is that of the rectangle around its keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, Prediction, Target
from icmbench.tasks.detection import Detection, ap_metrics, joined
from icmbench.tasks.drawing import dots
from icmbench.tasks.matching import AREAS, COCO_SIGMAS, Overlap, keypoint_overlap

if TYPE_CHECKING:
    import pyarrow as pa

POINTS = len(COCO_SIGMAS)


class Keypoints(Detection):
    """Person keypoints: keypoint AP, AP50, AP75 and AP of medium and large persons, as COCOeval.

    pseudo_threshold: with `reference: original`, persons on the original with at least this score are the labels; all their
    keypoints count as visible, and their box gives their area.
    """

    name = "keypoints"
    annotation = "keypoints"
    metrics = ap_metrics("all", "medium", "large")
    areas: ClassVar[Mapping[str, tuple[float, float]]] = {name: AREAS[name] for name in ("all", "medium", "large")}
    limit = 20

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([*super().schema, pa.field("keypoints", pa.list_(pa.float32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """As detection's, with `keypoints`: n times 17 times x, y, score."""
        predictions: list[Prediction] = []
        for found, image_id in zip(self.model(images), ids, strict=True):
            points = np.asarray(found["keypoints"], dtype=np.float32)
            if points.shape != (len(found["scores"]), POINTS, 3) or not np.isfinite(points).all():
                raise ValueError(
                    f"{image_id}: the model gave keypoints {points.shape}, not finite numbers of shape (n, {POINTS}, 3)"
                )
            predictions.append(self._boxes(found, image_id) | {"keypoints": points.ravel()})
        return predictions

    def _pseudo_target(self, prediction: Prediction, sure: npt.NDArray[np.bool_]) -> dict[str, Any]:
        points = _points(prediction["keypoints"])[sure]
        points[..., 2] = 2  # visible
        return super()._pseudo_target(prediction, sure) | {"keypoints": points, "labelled": np.full(len(points), POINTS)}

    def _overlap(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> tuple[Overlap, npt.NDArray[np.float64]]:
        found, wanted = _points(joined(predictions, "keypoints", np.float32)), _points(joined(targets, "keypoints", np.float64))
        boxes, areas = joined(targets, "boxes", np.float64).reshape(-1, 4), joined(targets, "areas", np.float64)
        return keypoint_overlap(found, wanted, boxes, areas), np.ptp(found[..., :2], axis=1).prod(axis=-1)

    def _ignored(self, targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        return super()._ignored(targets) | (joined(targets, "labelled", np.int64) == 0)

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """Boxes and keypoints from `pseudo_threshold` up."""
        sure = self._sure(prediction)
        return dots(super().draw(image, prediction), _points(prediction["keypoints"])[sure][..., :2])


def _points(flat: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.array(flat, dtype=np.float64).reshape(-1, POINTS, 3)
