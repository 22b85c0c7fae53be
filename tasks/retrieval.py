"""Image-text retrieval: Recall@1, 5 and 10 both ways, in percent.

    images -> model -> embeddings ----\\
    captions -> model -> embeddings ---+-> cosine similarity -> rank of each query's answer -> recall

The captions are embedded once a model, however many codecs are scored. A model for `retrieval` has `embed_images(images)`, float
(n, d), and `embed_texts(texts)`, float (m, d).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Context, Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task, fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

DEPTHS = (1, 5, 10)
TIE = 1e-9  # far below float32, in which embeddings are kept
ROWS = 256  # images compared with all texts at a time
METRICS = tuple(
    MetricSpec(f"R@{depth}_{way}", "%", primary=depth == 1, ceiling=100.0) for way in ("i2t", "t2i") for depth in DEPTHS
)


@dataclass(frozen=True)
class Ranks:
    """Rank of each query's answer in the gallery, 1 is best: int64 (images,) and (texts,). text_image: whose caption a text is."""

    image: npt.NDArray[np.int64]
    text: npt.NDArray[np.int64]
    text_image: npt.NDArray[np.int64]


def rank(images: npt.NDArray[Any], texts: npt.NDArray[Any], text_image: npt.NDArray[np.int64]) -> Ranks:
    """Ranks by cosine similarity of (n, d) and (m, d) embeddings, each image with all texts as gallery and the reverse.

    An image's answer is the best of its captions. Equal similarity (to 1e-9) counts against the answer, so that images that a codec
    made indistinguishable retrieve nothing.
    """
    images, texts = _unit(images), _unit(texts)
    right = np.einsum("md,md->m", images[text_image], texts) - TIE
    best = np.full(len(images), -np.inf)
    np.maximum.at(best, text_image, right)
    image_rank, text_rank = np.ones(len(images), np.int64), np.zeros(len(texts), np.int64)
    for start in range(0, len(images), ROWS):
        rows = np.arange(start, min(start + ROWS, len(images)))
        similarity = images[rows] @ texts.T
        others = text_image[None] != rows[:, None]
        image_rank[rows] += ((similarity >= best[rows, None]) & others).sum(axis=1)
        text_rank += (similarity >= right[None]).sum(axis=0)  # its own image among them
    return Ranks(image_rank, text_rank, text_image)


def recall(ranks: Ranks, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """Share of queries whose answer is among the first 1, 5, 10.

    weights (images,) count queries: an image's weight is that of the image and of each of its captions. The gallery stays.
    """
    of_images = np.ones(len(ranks.image)) if weights is None else np.asarray(weights, dtype=np.float64)
    values = {}
    for way, query_ranks, counted in (("i2t", ranks.image, of_images), ("t2i", ranks.text, of_images[ranks.text_image])):
        for depth in DEPTHS:
            values[f"R@{depth}_{way}"] = 100 * float(np.average(query_ranks <= depth, weights=counted))
    return values


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


class Retrieval(Task):
    """Image-text retrieval: Recall@1, 5, 10 both ways, over the captions of the scored images."""

    name = "retrieval"
    annotation = "captions"
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        if reference != "labels":
            raise DatasetError(f"task {self.name!r} needs captions; use reference: labels")
        super().__init__(dataset, model, reference)

    @cached_property
    def texts(self) -> list[str]:
        """Every caption once, sorted. Raises DatasetError where an image has none."""
        targets = self.targets(self.ids)
        for image_id, target in zip(self.ids, targets, strict=True):
            if not target["captions"]:
                raise DatasetError(f"dataset {self.dataset.name!r}: {image_id!r} has no caption; remove it from the captions file")
        return sorted({caption for target in targets for caption in target["captions"]})

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("embedding", pa.list_(pa.float32()))])

    @property
    def fingerprint(self) -> str:
        """The captions too, since the context holds their embeddings."""
        captions = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()
        return fingerprint(task=self.name, version=self.version, model=self.model.fingerprint, captions=captions)

    def context(self) -> Context:
        """`texts`: float32 (captions, d), in the order of `texts`."""
        return {"texts": np.asarray(self.model.embed_texts(self.texts), dtype=np.float32)}

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        return [{"embedding": row} for row in np.asarray(self.model.embed_images(images), dtype=np.float32)]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Ranks:
        if not self.ready:
            self.ready = self.context()
        place = {text: row for row, text in enumerate(self.texts)}
        captions = [target["captions"] for target in targets]
        rows = [place[text] for texts in captions for text in texts]
        text_image = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
        return rank(np.stack([prediction["embedding"] for prediction in predictions]), self.ready["texts"][rows], text_image)

    def aggregate(self, statistics: Ranks, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return recall(statistics, weights)
