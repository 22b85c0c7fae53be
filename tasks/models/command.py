"""A user's program as a task model: it predicts on a folder of pictures, batch by batch, and writes a file of predictions.

    tasks:
      - name: detection
        dataset: coco
        model:
          name: command
          command: [envs/yolo/bin/python, detect.py, --weights=yolo.pt, "{images}", "{output}"]
          format: boxes

    images --PNG and manifest.json--> {images} --program--> {output} --predictions_formats.py--> what the task takes

`{images}` and `{output}` are what a program sees that predicts on an export of a run, so that one program serves both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as Pillow

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.fingerprints import pixel_sha256
from icmbench.tasks.models.batches import picture
from icmbench.tasks.models.command_process import CommandLine
from icmbench.tasks.models.coordinates import BoxConvention
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_formats import Format, FormattedModel, PredictionSet, answers_of, count_regions, outputs_of
from icmbench.tasks.models.predictions_manifest import MANIFEST, ExportedImage, Manifest

QUESTIONS = "questions.jsonl"


class Command(FormattedModel):
    """A user's program that predicts on a folder of PNG files and writes COCO results, classes, label maps or answers.

    The program, and files and folders that arguments name, are in the fingerprint by SHA-256. Each call has a temporary folder as
    its working directory and a process group, which is killed when the program ends, fails or hangs. `{images}` holds one PNG for
    each picture and a manifest.json that lists them; `{output}` is an empty folder for the file of the format. Questions, for
    `answers`, stand in `{images}/questions.jsonl`, one a line with `image`, `prompt`, and where one region is meant `region` and
    `mask`, a PNG that is 255 in the region.

    Args:
        command: the program and its arguments, one list item each; no shell sees them. Placeholders are {images} and {output}. A
            literal brace is doubled.
        format: what the program writes: boxes, masks, keypoints, classes, labels, panoptic or answers.
        file: the file or folder that it writes; by default that of the format, such as boxes.json.
        annotations: as for the model `predictions`.
        names: as for the model `predictions`.
        first: as for the model `predictions`.
        classes: as for the model `predictions`.
        ranks: as for the model `predictions`.
        box_convention: as for the model `predictions`.
        box_choice: as for the model `predictions`.
        resizing: as for the model `predictions`.
        folder: where relative paths in the command line start, by default the current directory. An argument with a slash or a
            suffix that names a file in it becomes the file's absolute path, and so does a folder that an argument with a slash
            names.
        revision: what else decides the predictions but no argument names, such as versions of libraries. It is only written to the
            fingerprint.
        timeout_seconds: fixed part of the program's time limit, in seconds.
        timeout_seconds_per_image: what each image adds to it, in seconds.

    Raises:
        ModelError: an option or the command line is wrong, or the program is missing.
    """

    version = 1  # Raised by hand when the same files are read as other predictions.
    task: tuple[str, ...] = (*FormattedModel.task, "openset_marked")

    def __init__(
        self,
        command: list[str],
        format: Format,
        file: str | None = None,
        annotations: Path | None = None,
        names: Path | None = None,
        first: int = 0,
        classes: int = 1000,
        ranks: Literal[1, 5] = 5,
        box_convention: BoxConvention | None = None,
        box_choice: Literal["last", "first"] = "last",
        resizing: tuple[int, int, int] = (28, 56 * 56, 28 * 28 * 16384),
        folder: Path | None = None,
        revision: str | None = None,
        timeout_seconds: float = 600,
        timeout_seconds_per_image: float = 60,
    ) -> None:
        super().__init__(format, file, annotations, names, first, classes, ranks, box_convention, box_choice, resizing)
        if timeout_seconds <= 0 or timeout_seconds_per_image < 0:
            raise ModelError("command: time-outs are positive numbers of seconds")
        if format == "answers":
            self.task = (*self.task, "openset_marked")
        self._line = CommandLine(command, folder or Path())
        self._limits = (timeout_seconds, timeout_seconds_per_image)
        self._facts = {"command": list(command), "sha256": self._line.sha256, "revision": revision}

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="command", version=self.version, **self._facts, **self.format_facts())

    def __call__(self, images: Sequence[Image]) -> Any:
        """What a model of the task returns for these images, uint8 (height, width, 3) each.

        Raises:
            ModelError: the program fails or hangs, or writes no predictions of all images.
        """
        if not images:
            return []
        with tempfile.TemporaryDirectory(prefix="icmbench-", ignore_cleanup_errors=True) as name:
            entries = _write_pictures(Path(name, "images"), images)
            predictions = self._predict(Path(name), entries)
            return outputs_of([(predictions, entry) for entry in entries])

    def answer(self, images: Sequence[Image], prompts: Sequence[str], regions: Sequence[Any] | None = None) -> list[str]:
        """The answers to questions about images, or about regions of them, bool (height, width) each.

        Raises:
            ModelError: the program fails or hangs, or leaves a question without an answer.
        """
        if not images:
            return []
        numbers = {identity: number for number, identity in enumerate(dict.fromkeys(map(id, images)))}  # Each picture once.
        image_of = [numbers[id(image)] for image in images]
        counted: Sequence[int | None] = [None] * len(images)
        if regions is not None:
            counted = count_regions([str(number) for number in image_of])
        with tempfile.TemporaryDirectory(prefix="icmbench-", ignore_cleanup_errors=True) as name:
            folder = Path(name, "images")
            entries = _write_pictures(folder, [images[image_of.index(number)] for number in range(len(numbers))])
            found = [entries[number] for number in image_of]
            _write_questions(folder, found, prompts, counted, regions)
            predictions = self._predict(Path(name), entries)
            return answers_of([(predictions, entry) for entry in found], prompts, counted)

    def _predict(self, folder: Path, entries: Sequence[ExportedImage]) -> PredictionSet:
        """Run the program on the pictures in a temporary folder and read what it writes."""
        output = folder / "output"
        output.mkdir()
        fixed, per_image = self._limits
        values = {"images": str(folder / "images"), "output": str(output)}
        self._line.run(values, folder, fixed + per_image * len(entries), f"{len(entries)} pictures")
        if not (output / self.file).exists():
            raise ModelError(f"command: the program ended well but wrote no {self.file} into {{output}}")
        return self.read(output, entries)


def _write_pictures(folder: Path, images: Sequence[Image]) -> list[ExportedImage]:
    """Write pictures and their manifest as `icmbench export` does; their ids are their numbers from 0."""
    folder.mkdir()
    entries = []
    for number, image in enumerate(images):
        picture(image).save(folder / f"{number}.png", "PNG", compress_level=1)
        height, width = image.shape[:2]
        entries.append(ExportedImage(str(number), f"{number}.png", pixel_sha256(image), "", height, width, None))
    (folder / MANIFEST).write_bytes(Manifest({}, tuple(entries)).to_bytes())
    return entries


def _write_questions(
    folder: Path,
    entries: Sequence[ExportedImage],
    prompts: Sequence[str],
    numbers: Sequence[int | None],
    regions: Sequence[Any] | None,
) -> None:
    """Write the questions beside the pictures that they are about, and a mask for each region that one is about."""
    lines = []
    for k, (entry, prompt, number) in enumerate(zip(entries, prompts, numbers, strict=True)):
        question: dict[str, Any] = {"image": entry.id, "prompt": prompt}
        if regions is not None:
            mask = f"regions/{entry.id}-{number}.png"
            (folder / "regions").mkdir(exist_ok=True)
            Pillow.fromarray(np.asarray(regions[k], dtype=np.uint8) * np.uint8(255)).save(folder / mask, "PNG")
            question |= {"region": number, "mask": mask}
        lines.append(json.dumps(question) + "\n")
    (folder / QUESTIONS).write_text("".join(lines), encoding="utf-8")
