"""Referring expression comprehension: a multimodal language model gives the box that a phrase means.

    image + "the giraffe on the left" -> model -> text -> one box -> IoU with the labelled box -> accuracy at IoU 0.5

A model for `referring` has `answer(images, prompts)`, one text each, and an attribute `box_convention` that says in which unit it
writes coordinates:

    absolute           pixels of the image
    absolute_resized   pixels of the resized image that the model sees, whose (height, width) is `resized_size(height, width)`
    norm1000           0 to 1000
    norm1              0 to 1

An answer is read in that one convention only. Trying several and taking the best would flatter the model. What the model thinks
before it answers is not read (answers.py). Of several boxes the last one counts, because an argument ends with its conclusion,
unless the model's attribute `box_choice` is "first". `several_boxes` says how many answers held different ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from icmbench.tasks.answers import final_answer
from icmbench.tasks.base import (
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
from icmbench.tasks.drawing import draw_boxes
from icmbench.tasks.outputs import ModelOutput

if TYPE_CHECKING:
    import pyarrow as pa

PROMPT = 'Locate "{sentence}" in the image. Answer with one bounding box as JSON: {"bbox_2d": [x1, y1, x2, y2]}'
CONVENTIONS = ("absolute", "absolute_resized", "norm1000", "norm1")
Box: TypeAlias = tuple[float, float, float, float]
BoxChoice: TypeAlias = Literal["last", "first"]
METRICS = (
    MetricSpec("acc@0.5", "%", primary=True, ceiling=100.0),
    MetricSpec("mean_iou", "%", ceiling=100.0),
    MetricSpec("parse_failures", "%", higher_is_better=False, ceiling=0.0),
    MetricSpec("several_boxes", "%", higher_is_better=False, ceiling=0.0),
)
# 12, -0.5, .25, 1e2, "100". Possessive quantifiers keep the search linear in the length of an answer.
NUMBER = r"\s*+[\"']?+([+-]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?+\d++)?+)[\"']?+\s*+"
# Four coordinates as a model writes them: [x1, y1, x2, y2] or (x1, y1), (x2, y2).
BOX = re.compile(rf"[\[(]{NUMBER},{NUMBER}[\])]?+\s*+,\s*+[\[(]?+{NUMBER},{NUMBER}[\])]")


@dataclass(frozen=True)
class ReferringStatistics:
    """Overlap of every expression's box with its label, in four aligned arrays.

    Attributes:
        images: number of images.
        image: int64 (n,), index of the expression's image.
        iou: float64 (n,), 0 if the answer holds no box.
        parsed: bool (n,), whether the answer holds a box.
        several: bool (n,), whether the answer holds several different boxes.
    """

    images: int
    image: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    parsed: npt.NDArray[np.bool_]
    several: npt.NDArray[np.bool_]


def parse_boxes(answer: str) -> list[Box]:
    """Every four finite numbers in brackets that an answer states, in order. What the model thinks is no part of its answer.

    Args:
        answer: a model's text.

    Returns:
        x1, y1, x2, y2 in the model's unit for each box.

    Example:
        >>> parse_boxes('<think>[1, 2, 3, 4]?</think> Not (5, 6), (7, 8) but ["1e1", "20", "30", "40"].')
        [(5.0, 6.0, 7.0, 8.0), (10.0, 20.0, 30.0, 40.0)]
    """
    boxes = [tuple(float(number) for number in match.groups()) for match in BOX.finditer(final_answer(answer))]
    return [box for box in boxes if np.isfinite(box).all()]  # type: ignore[misc]


def parse_box(answer: str, choice: BoxChoice = "last") -> Box | None:
    """The box that counts among those that an answer states.

    Args:
        answer: a model's text.
        choice: which of several boxes counts.

    Returns:
        x1, y1, x2, y2 in the model's unit; None if the answer states no box.

    Example:
        >>> parse_box('{"bbox_2d": [12, 30, 200, 310.5]}')
        (12.0, 30.0, 200.0, 310.5)
    """
    boxes = parse_boxes(answer)
    return boxes[0 if choice == "first" else -1] if boxes else None


def iou(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Intersection over union of two boxes, float64 (4,) as x1, y1, x2, y2; 0 if one of them has no area."""
    intersection = np.prod(np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None))
    areas = np.prod(np.clip(first[2:] - first[:2], 0, None)) + np.prod(np.clip(second[2:] - second[:2], 0, None))
    return float(intersection / (areas - intersection)) if intersection > 0 else 0.0


class Referring(Task):
    """Referring expressions located by a multimodal model: accuracy at IoU 0.5, mean IoU, answers without a box.

    Args:
        dataset: a dataset with `referring` annotations.
        model: a model for `referring`.
        reference: "labels"; this task has no pseudo-labels.
        prompt: the question, with `{sentence}` for the expression; other braces stay as they are. The default asks for Qwen-VL's
            output format.

    Raises:
        DatasetError: `reference` is not "labels".
        ValueError: the prompt has no `{sentence}`, or the model's `box_convention` or `box_choice` is unknown.
    """

    name = "referring"
    annotation = "referring"
    draws = True
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels", prompt: str = PROMPT) -> None:
        if reference != "labels":
            raise DatasetError(f"task {self.name!r} needs labelled expressions; use reference: labels")
        if "{sentence}" not in prompt:
            raise ValueError(f"prompt {prompt!r} does not say where the expression goes; write {{sentence}} there")
        if model.box_convention not in CONVENTIONS:
            raise ValueError(f"box_convention {model.box_convention!r} is unknown; known: {', '.join(CONVENTIONS)}")
        self.box_choice: BoxChoice = getattr(model, "box_choice", "last")
        if self.box_choice not in ("last", "first"):
            raise ValueError(f"box_choice {self.box_choice!r} is unknown; known: last, first")
        super().__init__(dataset, model, reference)
        self.prompt = prompt

    @property
    def schema(self) -> pa.Schema:
        """`answers`, and the image's size in pixels."""
        import pyarrow as pa

        return pa.schema([("answers", pa.list_(pa.string())), ("height", pa.int32()), ("width", pa.int32())])

    @cached_property
    def sentences(self) -> dict[str, list[str]]:
        """The expressions of every image, in the order of the dataset."""
        return {i: list(target["sentences"]) for i, target in zip(self.ids, self.targets(self.ids), strict=True)}

    @property
    def fingerprint(self) -> str:
        """Task, version, model and prompt."""
        return fingerprint(task=self.name, version=self.version, model=self.model.fingerprint, prompt=self.prompt)

    def facts(self, image_id: str) -> list[str] | None:
        """The expressions of an image in the order of the dataset, in which it is asked about them; None for an unknown image."""
        return self.sentences.get(image_id)

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Ask about every expression. The answers are stored as texts and read when they are scored.

        Returns:
            Per image `answers`, one text per expression in the dataset's order, and `height` and `width` in pixels.

        Raises:
            ModelError: the model gave other than one text for each expression.
        """
        image_of = [k for k, image_id in enumerate(ids) for _ in self.sentences[image_id]]
        prompts = [self.prompt.replace("{sentence}", text) for image_id in ids for text in self.sentences[image_id]]
        asked = [f"{image_id}, {text!r}" for image_id in ids for text in self.sentences[image_id]]
        answers = ModelOutput(self.model).texts(self.model.answer([images[k] for k in image_of], prompts), asked, "prompt")
        by_image: list[list[str]] = [[] for _ in ids]
        for k, answer in zip(image_of, answers, strict=True):
            by_image[k].append(answer)
        return [
            {"answers": texts, "height": image.shape[0], "width": image.shape[1]}
            for texts, image in zip(by_image, images, strict=True)
        ]

    def boxes(self, prediction: Prediction) -> list[npt.NDArray[np.float64] | None]:
        """One box per answer, float64 (4,) as x1, y1, x2, y2 in pixels of the image; None if the answer holds no box."""
        height, width = prediction["height"], prediction["width"]
        if self.model.box_convention == "absolute_resized":
            unit_height, unit_width = self.model.resized_size(height, width)
        else:
            units = {"absolute": (height, width), "norm1000": (1000, 1000), "norm1": (1, 1)}
            unit_height, unit_width = units[self.model.box_convention]
        scale = np.array([width / unit_width, height / unit_height] * 2)
        parsed = [parse_box(answer, self.box_choice) for answer in prediction["answers"]]
        boxes = [None if box is None else np.array(box) * scale for box in parsed]
        return [box if box is not None and np.isfinite(box).all() else None for box in boxes]

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether no answer holds a box."""
        return all(box is None for box in self.boxes(prediction))

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> ReferringStatistics:
        """IoU of every expression's box."""
        rows: list[tuple[int, float, bool, bool]] = []
        for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            several = [len(set(parse_boxes(answer))) > 1 for answer in prediction["answers"]]
            for box, ambiguous, (x, y, width, height) in zip(self.boxes(prediction), several, target["boxes"], strict=True):
                label = np.array([x, y, x + width, y + height])
                rows.append((image, 0.0 if box is None else iou(box, label), box is not None, ambiguous))
        image_of, values, parsed, ambiguities = zip(*rows, strict=True) if rows else ((), (), (), ())
        flags = np.array(parsed, np.bool_), np.array(ambiguities, np.bool_)
        return ReferringStatistics(len(predictions), np.array(image_of, np.int64), np.array(values), *flags)

    def aggregate(self, statistics: ReferringStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Means over expressions in percent. Each expression counts as often as its image."""
        s = statistics
        counted = image_weights(weights, s.images)[s.image]
        return {
            "acc@0.5": 100 * float(np.average(s.iou >= 0.5, weights=counted)),
            "mean_iou": 100 * float(np.average(s.iou, weights=counted)),
            "parse_failures": 100 * float(np.average(~s.parsed, weights=counted)),
            "several_boxes": 100 * float(np.average(s.several, weights=counted)),
        }

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the boxes of all answers, each labelled with the number of its expression."""
        numbered = [(box, str(number)) for number, box in enumerate(self.boxes(prediction), start=1) if box is not None]
        corners = np.array([box for box, _ in numbered]).reshape(-1, 4)
        return draw_boxes(image, corners, [label for _, label in numbered], np.arange(len(numbered)))
