"""Predictions in text: classes of images as CSV, and answers to questions as JSON lines.

    image,class_1,class_2,class_3,class_4,class_5                       the best class first, by index or name; or `image,class`
    {"image": "000000000139.jpg", "prompt": "...", "answer": "..."}     and `region`, counted from 0, where one is meant

An image or question without a line is refused when it is asked for, never scored as a wrong answer.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.datasets.json_files import json_excerpt
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_manifest import ExportedImage
from icmbench.tasks.models.predictions_names import image_keys

REMEDY = "write the predictions again"


class ClassPredictions:
    """The classes that one CSV names for the pictures of one manifest.

    Args:
        path: the CSV.
        images: the images of the manifest.
        class_count: how many classes there are.
        names: their names, in order; None if the CSV holds indices.
        ranks: how many classes a row names, best first.

    Attributes:
        digests: what decides the prediction of each image that has a row, by id.

    Raises:
        ModelError: the file cannot be read, or a row is malformed, of an unknown image or class, or repeats an image or class.
    """

    def __init__(
        self, path: Path, images: Sequence[ExportedImage], class_count: int, names: Sequence[str] | None, ranks: int
    ) -> None:
        self._path, self._class_count = path, class_count
        self._index_of_name = {name: index for index, name in enumerate(names or ())}
        self._classes: dict[str, list[int]] = {}
        keys = image_keys(images, {})
        columns = ["image", "class"] if ranks == 1 else ["image", *(f"class_{rank}" for rank in range(1, ranks + 1))]
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, strict=True)
                header = [column.strip() for column in next(reader, [])]
                if header != columns:
                    other = "`ranks: 1` reads image,class and `ranks: 5` image,class_1,...,class_5"
                    raise ModelError(f"{path}: its columns are {','.join(header)}, not {','.join(columns)}: {other}")
                for row in filter(None, reader):
                    self._add(row, f"{path}, line {reader.line_num}", len(columns), keys)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; {REMEDY}") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ModelError(f"{path}: cannot be read ({error}); {REMEDY}") from None
        self.digests = {image_id: json.dumps(classes) for image_id, classes in self._classes.items()}

    def output(self, image: ExportedImage) -> npt.NDArray[np.float32]:
        """A score for every class, float32 (classes,): falling from the first rank to the last, and 0 for all other classes.

        Raises:
            ModelError: the image has no row.
        """
        if image.id not in self._classes:
            raise ModelError(f"{self._path}: has no row of image {image.id!r}; {REMEDY}")
        scores = np.zeros(self._class_count, np.float32)
        classes = self._classes[image.id]
        scores[classes] = np.arange(len(classes), 0, -1) / len(classes)
        return scores

    def _add(self, row: Sequence[str], where: str, columns: int, keys: Mapping[Any, str]) -> None:
        if len(row) != columns:
            raise ModelError(f"{where}: has {len(row)} fields under {columns} columns; {REMEDY}")
        name, *given = (field.strip() for field in row)
        if name not in keys:
            raise ModelError(f"{where}: image {name!r} is none of the manifest beside it; {REMEDY}")
        if keys[name] in self._classes:
            raise ModelError(f"{where}: image {name!r} stands in a line before already; keep one of them")
        classes = [self._class(text, where) for text in given]
        if len(set(classes)) != len(classes):
            raise ModelError(f"{where}: image {name!r} has a class twice; rank different ones")
        self._classes[keys[name]] = classes

    def _class(self, text: str, where: str) -> int:
        if text in self._index_of_name:
            return self._index_of_name[text]
        if text.isascii() and text.isdecimal() and int(text) < self._class_count:
            return int(text)
        known = f"an index from 0 to {self._class_count - 1}{' or a name of `names`' if self._index_of_name else ''}"
        raise ModelError(f"{where}: {text!r} is no class; write {known}")


class AnswerPredictions:
    """The answers of one file to questions about the pictures of one manifest.

    Args:
        path: the file, one JSON object a line.
        images: the images of the manifest.

    Attributes:
        digests: what decides the answers about each image that has some, by id.

    Raises:
        ModelError: the file cannot be read, or a line is malformed, of an unknown image, or answers a question again.
    """

    def __init__(self, path: Path, images: Sequence[ExportedImage]) -> None:
        self._path = path
        self._answers: dict[str, dict[tuple[str, int | None], str]] = {}
        keys = image_keys(images, {})
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; {REMEDY}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); {REMEDY}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._add(line, f"{path}, line {number}", keys)
        self.digests = {image_id: _digest(answers) for image_id, answers in self._answers.items()}

    def answer(self, image: ExportedImage, prompt: str, region: int | None) -> str:
        """The answer to a question about an image.

        Args:
            image: the image.
            prompt: the question.
            region: number of the region that it is about, from 0; None if it is about the image.

        Raises:
            ModelError: the file does not hold it.
        """
        answers = self._answers.get(image.id, {})
        if (prompt, region) not in answers:
            about = "" if region is None else f" and region {region}"
            raise ModelError(
                f"{self._path}: has no answer about image {image.id!r}{about} to the prompt {json_excerpt(prompt)}; {REMEDY}, "
                "with the prompts of the task, whose option `prompt` says how they are worded"
            )
        return answers[prompt, region]

    def _add(self, line: str, where: str, keys: Mapping[Any, str]) -> None:
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: not JSON ({error}); {REMEDY}") from None
        if type(item) is not dict or set(item) - {"image", "prompt", "region", "answer"}:
            raise ModelError(f"{where}: is no object of `image`, `prompt`, `answer` and perhaps `region`; {REMEDY}")
        for key in ("prompt", "answer"):
            if type(item.get(key)) is not str:
                raise ModelError(f"{where}: `{key}` is {json_excerpt(item.get(key))}, not a text; {REMEDY}")
        name, region = item.get("image"), item.get("region")
        if type(name) not in (str, int) or name not in keys:
            raise ModelError(f"{where}: image {json_excerpt(name)} is none of the manifest beside it; {REMEDY}")
        if region is not None and (type(region) is not int or region < 0):
            raise ModelError(f"{where}: `region` is {json_excerpt(region)}, not a number from 0; {REMEDY}")
        answers = self._answers.setdefault(keys[name], {})
        if (item["prompt"], region) in answers:
            raise ModelError(f"{where}: image {name!r} has an answer to {json_excerpt(item['prompt'])} before already; keep one")
        answers[item["prompt"], region] = item["answer"]


def _digest(answers: Mapping[tuple[str, int | None], str]) -> str:
    entries = sorted([prompt, -1 if region is None else region, answer] for (prompt, region), answer in answers.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:32]
