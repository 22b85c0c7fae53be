"""Image-text retrieval: Recall@1, 5 and 10 in both directions, in percent.

    images -> model -> embeddings ----\\
    captions -> model -> embeddings ---+-> cosine similarity -> rank of each query's answer -> recall

The captions are embedded once per model, for all codecs. A model for `retrieval` has `embed_images(images)`, which returns floating
point (n, d), and `embed_texts(texts)`, which returns floating point (m, d).
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

from icmbench.tasks.base import (
    Context,
    Dataset,
    DatasetError,
    Image,
    MetricSpec,
    Prediction,
    Reference,
    Target,
    Task,
    fingerprint,
    image_weights,
)
from icmbench.tasks.embeddings import normalise_rows
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.outputs import RowOutput

if TYPE_CHECKING:
    import pyarrow as pa

DEPTHS = (1, 5, 10)
TIE = 1e-9  # Similarities this close count as equal; far below the resolution of float32, in which embeddings are kept.
ROWS = 256  # Images compared with all texts at a time.
METRICS = tuple(
    MetricSpec(f"R@{depth}_{direction}", "%", primary=depth == 1, ceiling=100.0) for direction in ("i2t", "t2i") for depth in DEPTHS
)


@dataclass(frozen=True)
class Ranks:
    """Rank of each query's answer in the gallery; 1 is best.

    Attributes:
        image: int64 (images,), rank of the best of an image's captions among all texts.
        text: int64 (texts,), rank of a text's image among all images.
        text_image: int64 (texts,), the image that a text describes.
    """

    image: npt.NDArray[np.int64]
    text: npt.NDArray[np.int64]
    text_image: npt.NDArray[np.int64]


def rank(images: npt.NDArray[Any], texts: npt.NDArray[Any], text_image: npt.NDArray[np.int64]) -> Ranks:
    """Rank by cosine similarity, each image with all texts as gallery and each text with all images.

    Similarities that are equal to 1e-9 count against the answer, so images that a codec made indistinguishable retrieve nothing. A
    similarity that is NaN is the lowest of all: with such an answer a query ranks last, and nothing else is ranked below it.

    Args:
        images: embeddings (n, d).
        texts: embeddings (m, d).
        text_image: int64 (m,), the image that a text describes.

    Example:
        >>> ranks = rank(np.eye(2), np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]), text_image=np.array([0, 1, 1]))
        >>> ranks.image, ranks.text
        (array([1, 1]), array([1, 1, 2]))
    """
    images, texts = normalise_rows(images, np.float64), normalise_rows(texts, np.float64)
    answer = _nan_last(np.einsum("md,md->m", images[text_image], texts)) - TIE
    best_answer = np.full(len(images), -np.inf)
    np.maximum.at(best_answer, text_image, answer)
    image_rank, text_rank = np.ones(len(images), np.int64), np.zeros(len(texts), np.int64)
    for start in range(0, len(images), ROWS):
        rows = np.arange(start, min(start + ROWS, len(images)))
        similarity = _nan_last(images[rows] @ texts.T)
        is_foreign = text_image[None] != rows[:, None]
        image_rank[rows] += ((similarity >= best_answer[rows, None]) & is_foreign).sum(axis=1)
        text_rank += (similarity >= answer[None]).sum(axis=0)  # Counts the answer too, so that the best rank is 1.
    return Ranks(image_rank, text_rank, text_image)


def _nan_last(similarity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The similarities, with minus infinity for NaN, because every comparison with NaN is false and would count for the answer."""
    return np.where(np.isnan(similarity), -np.inf, similarity)


def recall(ranks: Ranks, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """Share of queries whose answer is among the first 1, 5 or 10 of the gallery.

    Args:
        ranks: ranks of all queries.
        weights: float64 (images,), how often each image and each of its captions count as queries; None counts them once. The
            gallery stays the same.

    Returns:
        In percent, `R@1_i2t` (an image as query) to `R@10_t2i` (a text as query).
    """
    of_images = image_weights(weights, len(ranks.image))
    values = {}
    for direction, query_ranks, counted in (("i2t", ranks.image, of_images), ("t2i", ranks.text, of_images[ranks.text_image])):
        for depth in DEPTHS:
            values[f"R@{depth}_{direction}"] = 100 * float(np.average(query_ranks <= depth, weights=counted))
    return values


class Retrieval(Task):
    """Image-text retrieval: Recall@1, 5, 10 both ways, over the captions of the scored images.

    Args:
        dataset: a dataset with `captions`.
        model: a model for `retrieval`.
        reference: "labels"; this task has no pseudo-labels.

    Raises:
        DatasetError: `reference` is not "labels".
    """

    name = "retrieval"
    annotation = "captions"
    has_context = True
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels") -> None:
        if reference != "labels":
            raise DatasetError(f"task {self.name!r} needs captions; use reference: labels")
        super().__init__(dataset, model, reference)

    @cached_property
    def texts(self) -> list[str]:
        """Every distinct caption, sorted.

        Raises:
            DatasetError: an image has no caption.
        """
        targets = self.targets(self.ids)
        for image_id, target in zip(self.ids, targets, strict=True):
            if not target["captions"]:
                raise DatasetError(f"dataset {self.dataset.name!r}: {image_id!r} has no caption; remove it from the captions file")
        return sorted({caption for target in targets for caption in target["captions"]})

    @property
    def schema(self) -> pa.Schema:
        """`embedding` of the image."""
        import pyarrow as pa

        return pa.schema([("embedding", pa.list_(pa.float32()))])

    @property
    def context_fingerprint(self) -> str:
        """Task, version, model and all captions. Predictions embed images alone, so their fingerprint lacks the captions."""
        captions = hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()
        return fingerprint(task=self.name, version=self.version, model=self.model.fingerprint, captions=captions)

    def context(self) -> Context:
        """`texts`: embeddings, float32 (captions, d), in the order of the attribute `texts`.

        Raises:
            ModelError: the model gave other than finite embeddings of some length.
        """
        return {"texts": RowOutput(self.model).embeddings(self.model.embed_texts(self.texts), self.texts)}

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`embedding`: float32 (d,).

        Raises:
            ModelError: the model gave other than finite embeddings of some length, as wide as those of the captions.
        """
        width = self.ready["texts"].shape[1] if self.ready else None
        return [{"embedding": row} for row in RowOutput(self.model).embeddings(self.model.embed_images(images), ids, width)]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Ranks:
        """Ranks among the images and captions that are given here.

        Raises:
            ModelError: the embeddings of images and captions differ in width.
        """
        if not self.ready:
            self.ready = self.context()
        row_of_text = {text: row for row, text in enumerate(self.texts)}
        captions = [target["captions"] for target in targets]
        rows = [row_of_text[text] for texts in captions for text in texts]
        text_image = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
        texts = self.ready["texts"][rows]
        widths = {len(prediction["embedding"]) for prediction in predictions} | {texts.shape[1]}
        if len(widths) > 1:
            raise ModelError(
                f"task {self.name!r}: the stored embeddings of images and captions are {sorted(widths)} wide; "
                "a model gives both the same width"
            )
        return rank(np.stack([prediction["embedding"] for prediction in predictions]), texts, text_image)

    def aggregate(self, statistics: Ranks, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Recall by depth and direction, in percent."""
        return recall(statistics, weights)
