"""Image classification: top-1 and top-5 accuracy, in percent.

    images -> model -> scores of all classes -> the best five -> right or wrong per image -> mean

A model for `classification` returns scores, float32 (n, classes), higher for likelier classes, in the order of the dataset's class
indices. Its attributes `categories`, the names of the classes, and `class_count`, their number, are optional; labels are compared
with them before anything is coded, or else with the first scores. So is `ranks`, how many of the best classes the scores tell
apart: below five there is no top-5 accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, Image, MetricSpec, Prediction, Reference, Target, Task, image_weights
from icmbench.tasks.drawing import draw_caption
from icmbench.tasks.labels import label_classes, refuse_class
from icmbench.tasks.outputs import RowOutput

if TYPE_CHECKING:
    import pyarrow as pa

BEST = 5


def accuracy(hits: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64] | None = None) -> npt.NDArray[np.float64]:
    """Share of hits in each column, in percent.

    Args:
        hits: bool (images, columns).
        weights: float64 (images,), how often each image counts; None counts each image once.

    Returns:
        float64 (columns,) in 0..100; NaN if no image counts.

    Example:
        >>> accuracy(np.array([[True, True], [False, True]]))
        array([ 50., 100.])
    """
    counted = image_weights(weights, len(hits))
    total = counted.sum()
    return 100 * (counted @ hits) / total if total else np.full(hits.shape[1], np.nan)


class Classification(Task):
    """Image classification: top-1 and top-5 accuracy."""

    name = "classification"
    annotation = "class"
    draws = True
    has_pseudo_labels = True
    metrics = (MetricSpec("top1", "%", primary=True, ceiling=100.0), MetricSpec("top5", "%", ceiling=100.0))

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        super().__init__(dataset, model, reference)
        self._labelled_classes: dict[int, str] = {}  # Each class of the labels, with the first image that has it.
        if reference == "labels":
            for image_id, target in zip(self.ids, dataset.targets("class", self.ids) if self.ids else [], strict=True):
                for index in label_classes(dataset, image_id, target, "class_index").tolist():
                    self._labelled_classes.setdefault(index, image_id)
        names = getattr(model, "categories", None)
        self._check_classes(len(names) if names else getattr(model, "class_count", None))
        self._ranks: int = min(BEST, getattr(model, "ranks", BEST))

    def _check_classes(self, count: int | None) -> None:
        """Raise DatasetError if a label has none of the model's classes, which would count as an error of the model."""
        for index, image_id in self._labelled_classes.items():
            if index < 0 or (count is not None and index >= count):
                name = f"model {type(self.model).__name__}"
                raise refuse_class(self.dataset, image_id, index, count or 1 + max(self._labelled_classes), name)

    @property
    def schema(self) -> pa.Schema:
        """`classes` and `scores` of the five best classes."""
        import pyarrow as pa

        return pa.schema([("classes", pa.list_(pa.int32())), ("scores", pa.list_(pa.float32()))])

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`classes` and `scores` of the five best, by falling score; among equal scores the lower class comes first.

        Where the model ranks fewer classes, only those are listed, because the others would be there by chance.

        Raises:
            ModelError: the model gave other than finite scores of every class for every image.
            DatasetError: a label has a class that the model gave no scores of.
        """
        names = getattr(self.model, "categories", None)
        scores = RowOutput(self.model).rows("scores", self.model(images), ids, len(names) if names else None, "classes")
        if len(ids):
            self._check_classes(scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self._ranks]
        return [{"classes": row.astype(np.int32), "scores": values[row]} for row, values in zip(best, scores)]

    def pseudo_targets(self, predictions: Sequence[Prediction]) -> list[Target]:
        """The best class on the original."""
        return [{"class_index": int(prediction["classes"][0])} for prediction in predictions]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> npt.NDArray[np.bool_]:
        """bool (images, 2): whether the label is the best class, and whether it is among the five best. NaN is never right."""
        hits = [
            (np.asarray(p["classes"]) == t["class_index"]) & ~np.isnan(np.asarray(p["scores"], dtype=np.float32))
            for p, t in zip(predictions, targets, strict=True)
        ]
        return np.array([(hit[0], hit.any()) for hit in hits], dtype=bool).reshape(-1, 2)

    def aggregate(self, statistics: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """`top1` and `top5` in percent; `top5` is NaN if the model ranks fewer than five classes."""
        top1, top5 = accuracy(statistics, weights)
        return {"top1": float(top1), "top5": float(top5) if self._ranks == BEST else float("nan")}

    def names(self, prediction: Prediction) -> list[str]:
        """The best class."""
        names = getattr(self.model, "categories", None)
        best = int(prediction["classes"][0])
        return [names[best] if names else f"class {best}"]

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the best class and its score in the upper left corner."""
        return draw_caption(image, f"{self.names(prediction)[0]}  {prediction['scores'][0]:.2f}")
