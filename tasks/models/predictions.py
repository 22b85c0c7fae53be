"""Predictions that were made elsewhere, on pictures that `icmbench export` wrote, found again by the pixels that they were made of.

    pixels -> pixel_sha256 -> manifest.json that lists them -> image id -> prediction in the files beside that manifest

No prediction is taken for pixels that no manifest lists. What decides a prediction is what the files hold for one image; it enters
the key of that prediction alone (`pixel_facts`), so that whoever adds a codec, a point or an image pays for nothing else again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.fingerprints import pixel_sha256
from icmbench.tasks.models.coordinates import BoxConvention
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.predictions_formats import Format, FormattedModel, PredictionSet, answers_of, count_regions, outputs_of
from icmbench.tasks.models.predictions_manifest import MANIFEST, ExportedImage, read_manifest

KEPT_SETS = 2  # Folders whose predictions are in memory; a run looks at one codec point after the other.


class Predictions(FormattedModel):
    """Predictions made elsewhere: COCO results, classes, label maps, panoptic segments or answers, bound to pixels.

    Args:
        path: the folder to look in. Every folder in it that holds a manifest.json, at any depth, holds predictions beside it.
        format: what the predictions are: boxes, masks, keypoints, classes, labels, panoptic or answers.
        file: the file or folder with the predictions beside each manifest; by default that of the format, such as boxes.json.
        annotations: a JSON in COCO's format, whose `categories` and `images` say what the numbers in the predictions mean. By
            default COCO's 80 categories, and images whose number is their name.
        names: a text file with one name of a category or class a line, instead of `annotations`.
        first: the number of the first of the `names` in label maps and COCO results.
        classes: how many classes there are, for `classes` without `names`; ImageNet's by default.
        ranks: how many classes are named for each image, for `classes`; with 1 there is no top-5 accuracy.
        box_convention: how answers write boxes, for the task `referring`: absolute, absolute_resized, norm1000 or norm1.
        box_choice: which box counts if an answer holds several: the last, with which an argument ends, or the first.
        resizing: `absolute_resized` only: the number of pixels that divides both sides of the resized image, and its least and
            largest area in pixels; Qwen2.5-VL's by default.

    Raises:
        ModelError: there is no manifest, one is malformed or is missing beside predictions, or an option is wrong.
    """

    version = 1  # Raised by hand when the same files are read as other predictions.

    def __init__(
        self,
        path: Path,
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
    ) -> None:
        super().__init__(format, file, annotations, names, first, classes, ranks, box_convention, box_choice, resizing)
        self.path = Path(path)
        self._folders: list[Path] = []
        self._images: list[tuple[ExportedImage, ...]] = []
        self._holders: dict[str, list[tuple[int, ExportedImage]]] = {}  # Folders and images by the hash of the pixels.
        for number, folder in enumerate(self._find_folders()):
            images = read_manifest(folder / MANIFEST).images
            self._folders.append(folder)
            self._images.append(images)
            for image in images:
                self._holders.setdefault(image.pixels, []).append((number, image))
        self._digests: dict[int, dict[str, str]] = {}
        self._sets: dict[int, PredictionSet] = {}

    @property
    def fingerprint(self) -> str:
        """How the files are read. What they hold for the pixels of an image comes from `pixel_facts`."""
        return fingerprint(model="predictions", version=self.version, **self.format_facts())

    def pixel_facts(self, sha256: str) -> dict[str, str | None]:
        """What the files hold for some pixels.

        Args:
            sha256: `pixel_sha256` of the pixels.

        Returns:
            `prediction`: a digest of it; None if no manifest lists the pixels, or the files beside it lack the image.

        Raises:
            ModelError: a file of predictions is malformed.
        """
        found = self._find(sha256)
        return {"prediction": None if found is None else self._digests_of(found[0]).get(found[1].id)}

    def __call__(self, images: Sequence[Image]) -> Any:
        """What a model of the task returns for these images, uint8 (height, width, 3) each.

        Raises:
            ModelError: the pixels are in no manifest, or an image has no prediction.
        """
        return outputs_of([(self._set(number, entry), entry) for number, entry in map(self._locate, images)])

    def answer(self, images: Sequence[Image], prompts: Sequence[str], regions: Sequence[Any] | None = None) -> list[str]:
        """The answers to questions about images, or about regions of them that are counted in the order in which they are given.

        Raises:
            ModelError: the pixels are in no manifest, or a question has no answer.
        """
        located: dict[int, tuple[int, ExportedImage]] = {}
        for image in images:
            if id(image) not in located:
                located[id(image)] = self._locate(image)
        found = [located[id(image)] for image in images]
        numbers: Sequence[int | None] = [None] * len(prompts)
        if regions is not None:
            numbers = count_regions([f"{number} {entry.id}" for number, entry in found])
        return answers_of([(self._set(number, entry), entry) for number, entry in found], prompts, numbers)

    def _find_folders(self) -> list[Path]:
        """The folders with a manifest, those of the originals first."""
        if not self.path.is_dir():
            raise ModelError(f"{self.path}: no such folder; give the one that holds manifest.json and predictions, codec by codec")
        folders, visited = [], set[Path]()
        for name, subfolders, files in os.walk(self.path, followlinks=True):
            if Path(name).resolve() in visited:  # A link to a folder above would lead in circles.
                subfolders.clear()
                continue
            visited.add(Path(name).resolve())
            subfolders.sort()
            if MANIFEST in files:
                folders.append(Path(name))
            elif self.file in files or self.file in subfolders:
                raise ModelError(
                    f"{Path(name, self.file)}: lacks {MANIFEST} beside it, which says of which pixels these predictions were made; "
                    "copy the one of the pictures that were predicted on, which `icmbench export` wrote"
                )
        if not folders:
            raise ModelError(f"{self.path}: no folder in it holds a {MANIFEST}; copy those of the pictures from `icmbench export`")
        return sorted(folders, key=lambda folder: (folder.name != "uncompressed", folder.as_posix()))

    def _find(self, sha256: str) -> tuple[int, ExportedImage] | None:
        """The folder and image that hold some pixels; None if no manifest lists them.

        Several hold them where a codec is lossless or a photograph is there twice. The first that has a prediction counts.

        Raises:
            ModelError: two of them have different predictions, so that one is of another model, or nothing can be told.
        """
        holders = self._holders.get(sha256, [])
        if len(holders) < 2:
            return holders[0] if holders else None
        predicted = [(number, image) for number, image in holders if image.id in self._digests_of(number)] or holders[:1]
        first, entry = predicted[0]
        for other, image in predicted[1:]:
            if self._digests_of(first)[entry.id] != self._digests_of(other)[image.id]:
                raise ModelError(
                    f"{self._folders[first]} and {self._folders[other]} hold different predictions for the same pixels, those of "
                    f"{image.id!r}: remove the folder that is not meant"
                )
        return first, entry

    def _locate(self, image: Image) -> tuple[int, ExportedImage]:
        sha256 = pixel_sha256(image)
        found = self._find(sha256)
        if found is None:
            raise ModelError(
                f"{self.path}: none of its {len(self._folders)} manifests lists the pixels {sha256[:12]} of this picture of "
                f"{image.shape[1]}x{image.shape[0]}, so no prediction there was made of them: export the run, and predict on that"
            )
        return found

    def _digests_of(self, number: int) -> dict[str, str]:
        if number not in self._digests:
            folder = self._folders[number]
            if not (folder / self.file).exists():
                self._digests[number] = {}  # Not made yet: the point is missing, and the other ones are not.
            else:
                self._digests[number] = self._load(number).digests
        return self._digests[number]

    def _set(self, number: int, entry: ExportedImage) -> PredictionSet:
        """The predictions of a folder, with the one of an image as `pixel_facts` told it."""
        loaded = self._load(number)
        if entry.id in self._digests_of(number) and loaded.digests.get(entry.id) != self._digests_of(number)[entry.id]:
            path = self._folders[number] / self.file
            raise ModelError(f"{path}: the prediction of {entry.id!r} changed during this run; run the same command again")
        return loaded

    def _load(self, number: int) -> PredictionSet:
        if number not in self._sets:
            loaded = self.read(self._folders[number], self._images[number])
            while len(self._sets) >= KEPT_SETS:
                self._sets.pop(next(iter(self._sets)))
            self._sets[number] = loaded
        return self._sets[number]
