"""The formats in which predictions are read, and what a model that reads them tells its task.

format      serves                      file in each folder              categories
boxes       detection                   boxes.json, COCO results         COCO's 80, `annotations` or `names`
masks       instance_segmentation       masks.json, COCO results         as above
keypoints   keypoints                   keypoints.json, COCO results     as above
classes     classification              classes.csv                      `classes`, a number, or `names`
labels      semantic_segmentation       labels/*.png                     `annotations` or `names`
panoptic    panoptic                    panoptic.json, panoptic/*.png    `annotations`, with `isthing`
answers     referring, openset          answers.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from icmbench.tasks.models.coordinates import BoxConvention, smart_resize
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import ExportedImage
from icmbench.tasks.models.predictions_maps import LabelMapPredictions, PanopticPredictions
from icmbench.tasks.models.predictions_names import COCO_CATEGORIES, Annotations, Categories, read_annotations, read_names
from icmbench.tasks.models.predictions_objects import ObjectPredictions
from icmbench.tasks.models.predictions_tables import AnswerPredictions, ClassPredictions

Format: TypeAlias = Literal["boxes", "masks", "keypoints", "classes", "labels", "panoptic", "answers"]

# The tasks that a format serves, and the file or folder that holds predictions in it.
FORMATS: dict[str, tuple[tuple[str, ...], str]] = {
    "boxes": (("detection",), "boxes.json"),
    "masks": (("instance_segmentation",), "masks.json"),
    "keypoints": (("keypoints",), "keypoints.json"),
    "classes": (("classification",), "classes.csv"),
    "labels": (("semantic_segmentation",), "labels"),
    "panoptic": (("panoptic",), "panoptic.json"),
    "answers": (("referring", "openset"), "answers.jsonl"),
}


# The predictions of one file or folder for the pictures of one manifest. All have `digests`, what decides the prediction of each
# image that has one, by id; and `output(image)`, which gives what a model of the task returns, or `answer`.
PredictionSet: TypeAlias = ObjectPredictions | ClassPredictions | LabelMapPredictions | PanopticPredictions | AnswerPredictions


class FormattedModel:
    """What the models that read predictions share: the options that say how, and the attributes that tasks ask for.

    Args:
        format: what the files hold, one of `FORMATS`.
        file: the file or folder with the predictions, below the folder of a manifest; by default that of the format.
        annotations: a JSON in COCO's format, whose `categories` and `images` say what the numbers in the predictions mean.
        names: a text file with one name of a category or class a line, instead of `annotations`.
        first: the number of the first of the `names` in label maps and COCO results.
        classes: how many classes there are, for `classes` without `names`.
        ranks: how many classes are named for each image, for `classes`; with 1 there is no top-5 accuracy.
        box_convention: how answers write boxes, which the task `referring` must know; see its module.
        box_choice: which box counts if an answer holds several.
        resizing: `absolute_resized` only: the number of pixels that divides both sides of the resized image, and its least and
            largest area in pixels; Qwen2.5-VL's by default.

    Attributes:
        task: the tasks that the format serves.
        categories: names of the categories; None if the format has none.
        is_thing: bool (categories,), for `panoptic`.
        class_count: number of classes, for `classes`.

    Raises:
        ModelError: an option is missing or does not belong to the format, or a file cannot be read.
    """

    task: tuple[str, ...] = tuple(task for tasks, _ in FORMATS.values() for task in tasks)
    extra: ClassVar[str] = "coco"
    weights: ClassVar[str] = "none here: the predictions are made elsewhere"

    def __init__(
        self,
        format: Format,
        file: str | None,
        annotations: Path | None,
        names: Path | None,
        first: int,
        classes: int,
        ranks: Literal[1, 5],
        box_convention: BoxConvention | None,
        box_choice: Literal["last", "first"],
        resizing: tuple[int, int, int],
    ) -> None:
        if format not in FORMATS:
            raise ModelError(f"format: {format!r} is none of {', '.join(FORMATS)}")
        self.format = format
        self.task, default_file = FORMATS[format]
        self.file = default_file if file is None else file
        if not self.file or self.file.startswith("/") or ".." in self.file.split("/"):
            raise ModelError(f"file: {file!r} is no path below the folder of a manifest")
        self._annotations = Annotations(None, {}) if annotations is None else read_annotations(annotations)
        self._categories = self._find_categories(annotations, names, first)
        self.categories = None if self._categories is None else list(self._categories.names)
        if format == "classes":
            self.class_count = classes if self._categories is None else len(self._categories.names)
            self.ranks = ranks
            if self.class_count < ranks:
                raise ModelError(f"classes: {self.class_count} classes cannot fill {ranks} ranks; give more, or ranks: 1")
        if format == "panoptic":
            self.is_thing = self._things(annotations)
        self.box_convention, self.box_choice, self._resizing = box_convention, box_choice, resizing

    def format_facts(self) -> dict[str, Any]:
        """Entries for a fingerprint: all options that decide how predictions are read."""
        facts: dict[str, Any] = {"format": self.format}
        if self._categories is not None:
            facts["categories"] = self._categories.facts()
        if self.format == "classes":
            facts |= {"classes": self.class_count, "ranks": self.ranks}
        if self.format == "answers":
            facts |= {"box_convention": self.box_convention, "box_choice": self.box_choice}
            facts |= {"resizing": self._resizing} if self.box_convention == "absolute_resized" else {}
        return facts

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of the resized image that boxes refer to with `absolute_resized`."""
        return smart_resize(height, width, *self._resizing)

    def read(self, folder: Path, images: Sequence[ExportedImage]) -> PredictionSet:
        """The predictions in a folder for the images of a manifest.

        Raises:
            ModelError: they cannot be read, or are malformed.
        """
        path, numbers = folder / self.file, self._annotations.names
        if self.format == "classes":
            return ClassPredictions(path, images, self.class_count, self.categories, self.ranks)
        if self.format == "answers":
            return AnswerPredictions(path, images)
        assert self._categories is not None
        if self.format == "labels":
            return LabelMapPredictions(path, images, self._categories)
        if self.format == "panoptic":
            return PanopticPredictions(path, images, numbers, self._categories)
        return ObjectPredictions(path, self.format, images, numbers, self._categories)

    def _find_categories(self, annotations: Path | None, names: Path | None, first: int) -> Categories | None:
        if self.format == "answers":
            return None
        if annotations is not None and names is not None:
            raise ModelError("names: the `annotations` name categories too; give one of the two")
        if names is not None:
            return read_names(names, 0 if self.format == "classes" else first)
        if self.format == "classes":
            return None
        if self._annotations.categories is not None:
            return self._annotations.categories
        if self.format in ("boxes", "masks", "keypoints"):
            return COCO_CATEGORIES
        raise ModelError(f"format {self.format!r}: what do its numbers mean? give `annotations` with `categories`, or `names`")

    def _things(self, annotations: Path | None) -> npt.NDArray[np.bool_]:
        if self._categories is None or self._categories.things is None:
            place = f"{annotations}: " if annotations else ""
            raise ModelError(f"annotations: {place}panoptic predictions need a JSON whose `categories` have `isthing`; give one")
        return self._categories.things.copy()


def outputs_of(found: Sequence[tuple[PredictionSet, ExportedImage]]) -> Any:
    """What a model of the task returns for images.

    Args:
        found: each image with the predictions that hold its own.

    Returns:
        One result per image; for classes an array of scores, float32 (images, classes).

    Raises:
        ModelError: an image has no prediction, or the predictions are answers, which need questions.
    """
    outputs: list[Any] = []
    for predictions, image in found:
        if isinstance(predictions, AnswerPredictions):
            raise ModelError("answers are given to questions; the task asks none: name another `format`")
        outputs.append(predictions.output(image))
    is_scores = bool(found) and isinstance(found[0][0], ClassPredictions)
    return np.stack(outputs) if is_scores else outputs


def answers_of(
    found: Sequence[tuple[PredictionSet, ExportedImage]], prompts: Sequence[str], regions: Sequence[int | None]
) -> list[str]:
    """The answers to questions.

    Args:
        found: the image of each question with the predictions that hold its answers.
        prompts: the questions.
        regions: the number of the region that each is about, from 0; None if it is about the image.

    Raises:
        ModelError: a question has no answer, or the predictions are no answers.
    """
    answers = []
    for (predictions, image), prompt, region in zip(found, prompts, regions, strict=True):
        if not isinstance(predictions, AnswerPredictions):
            raise ModelError("the task asks questions: give `format: answers`")
        answers.append(predictions.answer(image, prompt, region))
    return answers


def count_regions(keys: Sequence[str]) -> list[int]:
    """The number of each region among those of its image, from 0, in the order in which they are asked about.

    Args:
        keys: what tells the images of the regions apart, one each.

    Example:
        >>> count_regions(["a", "a", "b", "a"])
        [0, 1, 0, 2]
    """
    counts: dict[str, int] = {}
    numbers = []
    for key in keys:
        numbers.append(counts.get(key, 0))
        counts[key] = numbers[-1] + 1
    return numbers
