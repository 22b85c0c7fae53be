"""Image classification: top-1 and top-5 accuracy, in percent.

    images -> model -> scores of all classes -> the best five -> right or wrong an image -> mean

A model for `classification` returns float32 (n, classes) scores, the higher the likelier, by the dataset's class index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, MetricSpec, Prediction, Target, Task
from icmbench.tasks.drawing import caption

if TYPE_CHECKING:
    import pyarrow as pa

BEST = 5


def accuracy(hits: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """Percent of hits in each column of (images, columns); NaN where no image counts."""
    counted = np.ones(len(hits)) if weights is None else np.asarray(weights, dtype=np.float64)
    total = counted.sum()
    return 100 * (counted @ hits) / total if total else np.full(hits.shape[1], np.nan)


class Classification(Task):
    """Image classification: top-1 and top-5 accuracy."""

    name = "classification"
    annotation = "class"
    metrics = (MetricSpec("top1", "%", primary=True, ceiling=100.0), MetricSpec("top5", "%", ceiling=100.0))

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("classes", pa.list_(pa.int32())), ("scores", pa.list_(pa.float32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`classes` and `scores` of the five best, by falling score; of equal scores the lower class comes first."""
        scores = np.asarray(self.model(images), dtype=np.float32)
        if scores.ndim != 2 or len(scores) != len(images):
            raise ValueError(f"the model's scores are {scores.shape}, not ({len(images)}, classes)")
        best = np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
        return [{"classes": row.astype(np.int32), "scores": values[row]} for row, values in zip(best, scores)]

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The class that the model names on the original."""
        return [{"class_index": int(prediction["classes"][0])} for prediction in predictions]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        """bool (images, 2): the label is the best, is among the five best."""
        found = [np.asarray(p["classes"]) == t["class_index"] for p, t in zip(predictions, targets, strict=True)]
        return np.array([(hits[0], hits.any()) for hits in found], dtype=bool).reshape(-1, 2)

    def aggregate(self, statistics: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        top1, top5 = accuracy(statistics, weights)
        return {"top1": float(top1), "top5": float(top5)}

    def names(self, prediction: Prediction) -> list[str]:
        """The best class."""
        names = getattr(self.model, "categories", None)
        best = int(prediction["classes"][0])
        return [names[best] if names else f"class {best}"]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The best class and its score under the upper edge."""
        return caption(image, f"{self.names(prediction)[0]}  {prediction['scores'][0]:.2f}")
