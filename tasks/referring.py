"""Referring expression comprehension: the box that a phrase means, given by a multimodal language model.

    image + "the giraffe on the left" -> model -> text -> one box -> IoU with the labelled box -> accuracy at IoU 0.5

A model for `referring` has `answer(images, prompts)`, one text each, and says how it writes coordinates: `box_convention` is
`absolute` (pixels of the image), `absolute_resized` (pixels of what it saw, (height, width) = `resized_size(height, width)`),
`norm1000` (0 to 1000) or `norm1` (0 to 1). An answer is read in that one way, never in the better of two.
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

from icmbench.tasks.base import Dataset, DatasetError, Image, MetricSpec, Prediction, Reference, Target, Task, fingerprint
from icmbench.tasks.drawing import boxes as draw_boxes

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
BOX = re.compile(rf"[\[(]{NUMBER},{NUMBER}[\])]?\s*,\s*[\[(]?{NUMBER},{NUMBER}[\])]")  # [a, b, c, d] or (a, b), (c, d)


@dataclass(frozen=True)
class Located:
    """IoU of every expression's box, 0 where the answer holds none; aligned arrays. image: whose expression it is."""

    images: int
    image: npt.NDArray[np.int64]
    iou: npt.NDArray[np.float64]
    parsed: npt.NDArray[np.bool_]


def parse_box(answer: str) -> tuple[float, float, float, float] | None:
    """The first four numbers in brackets, as x1, y1, x2, y2 in the model's own units; None where there are none."""
    match = BOX.search(answer)
    return None if match is None else tuple(float(number) for number in match.groups())  # type: ignore[return-value]


def iou(box: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2; 0 where one has no area."""
    shared = np.prod(np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None))
    areas = np.prod(np.clip(box[2:] - box[:2], 0, None)) + np.prod(np.clip(other[2:] - other[:2], 0, None))
    return float(shared / (areas - shared)) if shared > 0 else 0.0


class Referring(Task):
    """Referring expressions located by a multimodal model: accuracy at IoU 0.5, mean IoU, answers without a box."""

    name = "referring"
    annotation = "referring"
    metrics = METRICS

    def __init__(self, dataset: Dataset, model: Any, reference: Reference = "labels", prompt: str = PROMPT) -> None:
        """prompt: what is asked, with `{sentence}` for the expression."""
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
        import pyarrow as pa

        return pa.schema([("answers", pa.list_(pa.string())), ("height", pa.int32()), ("width", pa.int32())])

    @cached_property
    def sentences(self) -> dict[str, list[str]]:
        """The expressions of every image, in the order of the dataset."""
        return {i: list(target["sentences"]) for i, target in zip(self.ids, self.targets(self.ids), strict=True)}

    @property
    def fingerprint(self) -> str:
        """The prompt and all expressions too, since they decide the answers."""
        asked = hashlib.sha256(json.dumps(self.sentences).encode()).hexdigest()
        facts = {"prompt": self.prompt, "sentences": asked}
        return fingerprint(task=self.name, version=self.version, model=self.model.fingerprint, **facts)

    def predict(self, images: Sequence[Image], ids: Sequence[str], originals: Sequence[Image] | None = None) -> list[Prediction]:
        """`answers`: one text an expression, in the dataset's order; they are read when they are scored."""
        owners = [k for k, image_id in enumerate(ids) for _ in self.sentences[image_id]]
        prompts = [self.prompt.replace("{sentence}", text) for image_id in ids for text in self.sentences[image_id]]
        answers = list(self.model.answer([images[k] for k in owners], prompts))
        if len(answers) != len(prompts):
            raise ValueError(f"the model gave {len(answers)} answers to {len(prompts)} prompts")
        mine: list[list[str]] = [[] for _ in ids]
        for k, answer in zip(owners, answers, strict=True):
            mine[k].append(answer)
        return [
            {"answers": texts, "height": image.shape[0], "width": image.shape[1]} for texts, image in zip(mine, images, strict=True)
        ]

    def boxes(self, prediction: Prediction) -> list[npt.NDArray[np.float64] | None]:
        """One box an answer, x1, y1, x2, y2 in pixels of the image; None where the answer holds none."""
        height, width = prediction["height"], prediction["width"]
        if self.model.box_convention == "absolute_resized":
            seen_height, seen_width = self.model.resized_size(height, width)
        else:
            seen_height, seen_width = {"absolute": (height, width), "norm1000": (1000, 1000), "norm1": (1, 1)}[
                self.model.box_convention
            ]
        scale = np.array([width / seen_width, height / seen_height] * 2)
        parsed = [parse_box(answer) for answer in prediction["answers"]]
        return [None if box is None else np.array(box) * scale for box in parsed]

    def is_empty(self, prediction: Prediction) -> bool:
        return all(box is None for box in self.boxes(prediction))

    def statistics(self, predictions: Sequence[Prediction], targets: Sequence[Target]) -> Located:
        rows: list[tuple[int, float, bool]] = []
        for image, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
            for box, (x, y, width, height) in zip(self.boxes(prediction), target["boxes"], strict=True):
                label = np.array([x, y, x + width, y + height])
                rows.append((image, 0.0 if box is None else iou(box, label), box is not None))
        image_of, values, parsed = zip(*rows, strict=True) if rows else ((), (), ())
        return Located(len(predictions), np.array(image_of, np.int64), np.array(values), np.array(parsed, np.bool_))

    def aggregate(self, statistics: Located, weights: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
        """Means over expressions, each counted as often as its image."""
        s = statistics
        counted = (np.ones(s.images) if weights is None else np.asarray(weights, dtype=np.float64))[s.image]
        return {
            "acc@0.5": 100 * float(np.average(s.iou >= 0.5, weights=counted)),
            "mean_iou": 100 * float(np.average(s.iou, weights=counted)),
            "parse_failures": 100 * float(np.average(~s.parsed, weights=counted)),
        }

    def draw(self, image: Image, prediction: Prediction) -> Image:
        found = [(box, str(number)) for number, box in enumerate(self.boxes(prediction), start=1) if box is not None]
        corners = np.array([box for box, _ in found]).reshape(-1, 4)
        return draw_boxes(image, corners, [label for _, label in found], np.arange(len(found)))
