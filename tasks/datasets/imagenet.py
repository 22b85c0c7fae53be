"""ImageNet-1k, in the layouts in which it is found.

    class folders    images/n01440764/*.JPEG ...
    flat             images/ILSVRC2012_val_00000001.JPEG ... and a list of labels
    CSV              images/* and a table with the columns file, class_index

A class index is the position, 0 to 999, of the class's WordNet id among the 1,000 sorted ids. Models give their scores in this
order. The devkit's ILSVRC2012_ID numbers the classes in another order, so its list of labels needs the devkit's table, meta.mat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import list_images, require_images, require_path
from icmbench.tasks.datasets.lists import read_csv, read_text, unique_labels, whole_number

CLASSES = 1000
VALIDATION_IMAGES = 50_000
WORDNET_ID = re.compile(r"n\d{8}")
NUMBERED_IMAGE = re.compile(r"ILSVRC2012_(?:val|test)_(\d{8})\.jpeg", re.IGNORECASE)


class ImageNet(ImageFolder):
    """ImageNet-1k: class folders, the flat validation folder with its list of labels, or a CSV of labels.

    Args:
        images: the folder of images.
        labels: a CSV with the columns `file` and `class_index`; a text of lines `file index`, as Caffe's val.txt; or the devkit's
            ILSVRC2012_validation_ground_truth.txt, which needs `classes`. None reads class folders.
        classes: a text of 1,000 lines that start with the WordNet ids in order of class index (LOC_synset_mapping.txt), or the
            devkit's meta.mat. Class folders need it unless all 1,000 are present.
        preprocessing: what is done to every image before coding; see `images.Preprocessing`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file is missing or malformed, or the labels do not fit the images.
    """

    source: ClassVar[str] = (
        "Download from the ImageNet project, challenge ILSVRC2012, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, "
        "and give the folder of ILSVRC2012_val_*.JPEG as `images`, data/ILSVRC2012_validation_ground_truth.txt of the devkit as "
        "`labels` and its data/meta.mat as `classes`."
    )

    def __init__(
        self,
        images: Path,
        labels: Path | None = None,
        classes: Path | None = None,
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "imagenet",
    ) -> None:
        self._labels_file = None if labels is None else Path(labels)
        self._classes_file = None if classes is None else Path(classes)
        self._labels: dict[str, int] = {}
        for path in (self._labels_file, self._classes_file):
            if path is not None:
                require_path(path, "file", self.source)
        super().__init__(images, preprocessing, limit, name)

    def _list(self) -> list[str]:
        file = self._labels_file
        if file is None:
            self._labels = _class_folder_labels(self.images, self._classes_file)
        elif file.suffix.lower() == ".csv":
            self._labels = _csv_labels(file)
        else:
            self._labels = self._listed_labels(file)
        for image_id, label in self._labels.items():
            if not 0 <= label < CLASSES:
                raise DatasetError(f"{file}: class index {label} of {image_id!r} is not in 0..{CLASSES - 1}; number classes from 0")
        if file is not None:
            if not self._labels:
                raise DatasetError(f"{file}: lists no images; give a table or list of labels with at least one line")
            require_images(self.images, self._labels, file)
        return sorted(self._labels)

    def _listed_labels(self, file: Path) -> dict[str, int]:
        """Class index by image, from lines `file index` or from the devkit's list."""
        lines = read_text(file).rstrip().split("\n")
        rows = [(number, line.split()) for number, line in enumerate(lines, start=1)]
        try:
            if rows and all(len(row) == 1 for _, row in rows):
                return self._devkit_labels(file, [whole_number(row[0]) for _, row in rows])
            rows = [(number, row) for number, row in rows if row]
            if all(len(row) == 2 for _, row in rows):
                return unique_labels(file, ((number, row[0], whole_number(row[1])) for number, row in rows))
        except ValueError as error:
            if isinstance(error, DatasetError):
                raise
        raise DatasetError(f"{file}: not a list of labels; its lines are `file index`, or one ILSVRC2012_ID each as in the devkit")

    def _devkit_labels(self, file: Path, numbers: list[int]) -> dict[str, int]:
        """Class index by image, from the devkit's list: one ILSVRC2012_ID per image, in order of the images' numbers."""
        if self._classes_file is None or self._classes_file.suffix != ".mat":
            raise DatasetError(f"{file}: ILSVRC2012_IDs are not class indices; give the devkit's meta.mat as `classes` too")
        index = _index_by_devkit_id(self._classes_file)
        image_ids = list_images(self.images)
        _require_whole_list(file, len(numbers), image_ids)
        labels = {}
        for image_id in image_ids:
            match = NUMBERED_IMAGE.fullmatch(Path(image_id).name)
            if match is None or not 1 <= int(match[1]) <= len(numbers):
                raise DatasetError(
                    f"{self.images / image_id}: no line of {file} belongs to it; images are named ILSVRC2012_val_00000001.JPEG ..."
                )
            number = numbers[int(match[1]) - 1]
            if number not in index:
                raise DatasetError(f"{file}: {number} is no ILSVRC2012_ID of {self._classes_file}; both come from one devkit")
            labels[image_id] = index[number]
        return labels

    def annotated(self, kind: str) -> list[str]:
        """For `class`, every image."""
        return list(self.ids) if kind == "class" else []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """For `class`, one `class_index` in 0..999 per image.

        Raises:
            DatasetError: another kind is asked for.
        """
        if kind != "class":
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations, only `class`; use reference: original")
        return [{"class_index": self._labels[image_id]} for image_id in ids]


def _require_whole_list(file: Path, lines: int, image_ids: Sequence[str]) -> None:
    """Check the number of lines in the devkit's list: one line too few would shift the labels of all images after it."""
    matches = [NUMBERED_IMAGE.fullmatch(Path(image_id).name) for image_id in image_ids]
    last = max((int(match[1]) for match in matches if match), default=0)
    if lines not in (VALIDATION_IMAGES, last) and lines > last:
        raise DatasetError(
            f"{file}: has {lines} lines, but the devkit's list has {VALIDATION_IMAGES}, and the last image is number {last}; "
            "give the whole list"
        )


def _class_folder_labels(images: Path, classes: Path | None) -> dict[str, int]:
    """Class index by image, from the WordNet ids that name the class folders."""
    image_ids = list_images(images)
    stray = next((i for i in image_ids if not WORDNET_ID.fullmatch(i.split("/")[0]) or "/" not in i), None)
    if stray is not None:
        raise DatasetError(
            f"{images / stray}: lies in no class folder such as n01440764; give `labels` if the images lie flat. {ImageNet.source}"
        )
    wordnet_ids = sorted({image_id.split("/")[0] for image_id in image_ids})
    if classes is not None:
        index = _index_by_wordnet_id(classes)
    elif len(wordnet_ids) == CLASSES:
        index = {wordnet_id: position for position, wordnet_id in enumerate(wordnet_ids)}
    else:
        raise DatasetError(
            f"{images}: has {len(wordnet_ids)} class folders, and only all {CLASSES} tell their indices; "
            "give LOC_synset_mapping.txt or the devkit's meta.mat as `classes`"
        )
    unknown = next((wordnet_id for wordnet_id in wordnet_ids if wordnet_id not in index), None)
    if unknown is not None:
        raise DatasetError(f"{images / unknown}: {classes} has no class {unknown}; give the table of ILSVRC2012")
    return {image_id: index[image_id.split("/")[0]] for image_id in image_ids}


def _csv_labels(file: Path) -> dict[str, int]:
    def rows() -> Iterator[tuple[int, str, int]]:
        for line, (name, text) in read_csv(file, ("file", "class_index")):
            try:
                yield line, name, whole_number(text)
            except ValueError:
                raise DatasetError(f"{file}: line {line} has no whole number as `class_index`; give 0 to 999") from None

    return unique_labels(file, rows())


def _index_by_wordnet_id(file: Path) -> dict[str, int]:
    """Class index by WordNet id, from meta.mat or from a text of 1,000 lines that start with a WordNet id, in order."""
    if file.suffix == ".mat":
        return {wordnet_id: index for index, wordnet_id in enumerate(sorted(_devkit_synsets(file).values()))}
    wordnet_ids = [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
    if len(set(wordnet_ids)) != CLASSES or not all(WORDNET_ID.fullmatch(wordnet_id) for wordnet_id in wordnet_ids):
        count = len(set(wordnet_ids))
        raise DatasetError(f"{file}: holds {count} names, not {CLASSES} WordNet ids, one a line in order of class index")
    if wordnet_ids != sorted(set(wordnet_ids)):
        raise DatasetError(
            f"{file}: its WordNet ids are not sorted or stand there twice, but their order is the class index; sort them"
        )
    return {wordnet_id: index for index, wordnet_id in enumerate(wordnet_ids)}


def _index_by_devkit_id(file: Path) -> dict[int, int]:
    """Class index by ILSVRC2012_ID, from meta.mat."""
    synsets, index = _devkit_synsets(file), _index_by_wordnet_id(file)
    return {number: index[wordnet_id] for number, wordnet_id in synsets.items()}


def _devkit_synsets(file: Path) -> dict[int, str]:
    """WordNet ids of the 1,000 classes by ILSVRC2012_ID, from meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(file, squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # SciPy's reader raises a dozen types on bad files.
        raise DatasetError(f"{file}: not the devkit's meta.mat ({error}); it has the table `synsets`") from error
    leaves = {number: wordnet_id for number, wordnet_id in names.items() if number <= CLASSES}  # Inner nodes have higher numbers.
    if len(set(leaves.values())) != CLASSES:
        raise DatasetError(f"{file}: has {len(leaves)} classes, not {CLASSES}; give the meta.mat of ILSVRC2012_devkit_t12")
    return leaves
