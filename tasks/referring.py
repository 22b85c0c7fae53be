"""Referring expression comprehension: a multimodal language model gives the box that a phrase means.

    image + "the giraffe on the left" -> model -> text -> one box -> IoU with the labelled box -> accuracy at IoU 0.5

A model for `referring` has `answer(images, prompts)`, one text each, and an attribute `box_convention` that says in which unit it
writes coordinates:

    absolute           pixels of the image
    absolute_resized   pixels of the resized image that the model sees, whose (height, width) is `resized_size(height, width)`
    norm1000           0 to 1000
    norm1              0 to 1

An answer is read in that one convention only. Trying several and taking the best would flatter the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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

if TYPE_CHECKING:
    import pyarrow as pa

PROMPT = 'Locate "{sentence}" in the image. Answer with one bounding box as JSON: {"bbox_2d": [x1, y1, x2, y2]}'
CONVENTIONS = ("absolute", "absolute_resized", "norm1000", "norm1")
METRICS = (
    MetricSpec("acc@0.5", "%", primary=True, ceiling=100.0),
    MetricSpec("mean_iou", "%", ceiling=100.0),
    MetricSpec("parse_failures", "%", higher_is_better=False, ceiling=0.0),
)
NUMBER = r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*"
# Four coordinates as a model writes them: [x1, y1, x2, y2] or (x1, y1), (x2, y2).
BOX = re.compile(rf"[\[(]{NUMBER},{NUMBER}[\])]?\s*,\s*[\[(]?{NUMBER},{NUMBER}[\])]")


@dataclass(frozen=True)
class ReferringStatistics:
    """Overlap of every expression's box with its label, in three aligned arrays.

    Attributes:
        images: number of images.
        image: int64 (n,), index of the expression's image.
        iou: float64 (n,), 0 if the answer holds no box.
        parsed: bool (n,), whether the answer holds a box.
    """

    images: int
    image: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    parsed: npt.NDArray[np.bool_]


def parse_box(answer: str) -> tuple[float, float, float, float] | None:
    """The first four numbers in brackets.

    Args:
        answer: a model's text.

    Returns:
        x1, y1, x2, y2 in the model's unit; None if the text holds no such numbers.

    Example:
        >>> parse_box('{"bbox_2d": [12, 30, 200, 310.5]}')
        (12.0, 30.0, 200.0, 310.5)
    """
    match = BOX.search(answer)
    return None if match is None else tuple(float(number) for number in match.groups())  # type: ignore[return-value]


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
        ValueError: the prompt has no `{sentence}`, or the model's `box_convention` is unknown.
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
        """Task, version, model, prompt and all expressions, because they decide the answers."""
        digest = hashlib.sha256(json.dumps(self.sentences).encode()).hexdigest()
        facts = {"prompt": self.prompt, "sentences": digest}
        return fingerprint(task=self.name, version=self.version, model=self.model.fingerprint, **facts)

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """Ask about every expression. The answers are stored as texts and read when they are scored.

        Returns:
            Per image `answers`, one text per expression in the dataset's order, and `height` and `width` in pixels.

        Raises:
            ValueError: the model gave another number of answers.
        """
        image_of = [k for k, image_id in enumerate(ids) for _ in self.sentences[image_id]]
        prompts = [self.prompt.replace("{sentence}", text) for image_id in ids for text in self.sentences[image_id]]
        answers = list(self.model.answer([images[k] for k in image_of], prompts))
        if len(answers) != len(prompts):
            raise ValueError(f"the model gave {len(answers)} answers to {len(prompts)} prompts")
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
        parsed = [parse_box(answer) for answer in prediction["answers"]]
        return [None if box is None else np.array(box) * scale for box in parsed]

    def is_empty(self, prediction: Prediction) -> bool:
        """Whether no answer holds a box."""
        return all(box is None for box in self.boxes(prediction))

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> ReferringStatistics:
        """IoU of every expression's box."""
        rows: list[tuple[int, float, bool]] = []
        for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            for box, (x, y, width, height) in zip(self.boxes(prediction), target["boxes"], strict=True):
                label = np.array([x, y, x + width, y + height])
                rows.append((image, 0.0 if box is None else iou(box, label), box is not None))
        image_of, values, parsed = zip(*rows, strict=True) if rows else ((), (), ())
        return ReferringStatistics(len(predictions), np.array(image_of, np.int64), np.array(values), np.array(parsed, np.bool_))

    def aggregate(self, statistics: ReferringStatistics, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Means over expressions in percent. Each expression counts as often as its image."""
        s = statistics
        counted = image_weights(weights, s.images)[s.image]
        return {
            "acc@0.5": 100 * float(np.average(s.iou >= 0.5, weights=counted)),
            "mean_iou": 100 * float(np.average(s.iou, weights=counted)),
            "parse_failures": 100 * float(np.average(~s.parsed, weights=counted)),
        }

    def draw(self, image: Image, prediction: Prediction) -> Image:
        """The image with the boxes of all answers, each labelled with the number of its expression."""
        numbered = [(box, str(number)) for number, box in enumerate(self.boxes(prediction), start=1) if box is not None]
        corners = np.array([box for box, _ in numbered]).reshape(-1, 4)
        return draw_boxes(image, corners, [label for _, label in numbered], np.arange(len(numbered)))
