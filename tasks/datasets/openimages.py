"""Open Images with boxes, masks and image-level labels, as MPEG's conditions for Video Coding for Machines use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.decoding import find_turn, open_picture
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import list_images, printable_name
from icmbench.tasks.datasets.openimages_labels import ImageLabels, Tables
from icmbench.tasks.datasets.openimages_tables import photographs_by_id, read_id_list
from icmbench.tasks.datasets.sizes import upright_size


class OpenImages(ImageFolder):
    """Open Images V6, or the part that MPEG VCM uses: boxes, masks, and the classes that were looked for in each image.

    MPEG's lists name 5,000 photographs for detection and 5,000 for instance segmentation; their tables write 47 names of COCO's,
    with underscores for blanks, into which Open Images' own classes were merged. Classes are taken as they are written: no class
    stands for those below it in Open Images' hierarchy.

    Args:
        images: the folder of photographs, `ImageID.jpg` or `ImageID.png`.
        boxes: the CSV of boxes, with ImageID, LabelName, XMin, XMax, YMin, YMax and IsGroupOf.
        labels: the CSV of image-level labels that people verified, with ImageID, LabelName and Confidence.
        image_list: a text file with an ImageID a line; None takes the whole folder.
        masks: the CSV of masks, as published or as MPEG has it; None for detection alone.
        mask_folder: the folder of mask PNG files; None takes the masks from the column `Mask` that MPEG's CSV has.
        classes: the CSV of label names (/m/01bl7v) and names to read, where the tables write the former. Rows of classes that it
            does not list are left out.
        preprocessing: what is done to every image before coding; see `images.Preprocessing`. Boxes and masks need `native`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Attributes:
        scoring_rules: the metric that the labels are made for; see `Detection`.

    Raises:
        DatasetError: a file is missing or malformed, or an image of the list is missing or has no labels.
    """

    source: ClassVar[str] = (
        "MPEG VCM: take the lists and CSV of data/mpeg-vcm in the repository InterDigitalInc/CompressAI-Vision, and the "
        "photographs of the list from Open Images' validation set into one folder. Open Images V6: take the validation "
        "photographs, validation-annotations-bbox.csv, validation-annotations-human-imagelabels-boxable.csv, "
        "class-descriptions-boxable.csv, validation-annotations-object-segmentation.csv and the mask archives, unpacked into one "
        "folder."
    )
    scoring_rules: ClassVar[str] = "openimages"

    def __init__(
        self,
        images: Path,
        boxes: Path,
        labels: Path,
        image_list: Path | None = None,
        masks: Path | None = None,
        mask_folder: Path | None = None,
        classes: Path | None = None,
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "openimages",
    ) -> None:
        optional = [path if path is None else Path(path) for path in (masks, mask_folder, classes, image_list)]
        self._tables = Tables(Path(boxes), Path(labels), *optional)
        self._tables.require(name, self.source)
        super().__init__(images, preprocessing, limit, name)
        self._labels = ImageLabels(self._tables, self.ids)
        self._known = frozenset(self.ids)
        self._has_fitting_photographs = False

    def _list(self) -> list[str]:
        photographs = list_images(self.images)
        if self._tables.image_list is not None:
            return read_id_list(self._tables.image_list, photographs, self.images)
        photographs_by_id(photographs, self.images)
        return photographs

    def read(self, image_id: str) -> Image:
        """Decoded, upright pixels, uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file cannot be read or is turned by its metadata, or a mask of the image is damaged.
        """
        image = super().read(image_id)
        if self.preprocessing == "native":
            size = (image.shape[0], image.shape[1])
            if size != upright_size(self.path(image_id)):
                raise self._refuse_turned(image_id)
            self._check_masks(image_id, size)
        return image

    def annotated(self, kind: str) -> list[str]:
        """For `instances`, all images, also those without a box.

        A task asks for them before anything is coded, so this is where the headers of all photographs are read, once.

        Raises:
            DatasetError: the annotations do not follow the preprocessing, or a photograph is turned by its EXIF orientation. A mask
                belongs to no box, is missing, or stands in the CSV and is damaged or of another size than its photograph.
        """
        if kind != "instances":
            return []
        self._refuse_preprocessed()
        for image_id in [] if self._has_fitting_photographs else self.ids:
            size = upright_size(self.path(image_id))
            if size is None:  # It is named where its pixels are read, as an experiment may tolerate some.
                continue
            with self.path(image_id).open("rb") as file, open_picture(file) as picture:
                if find_turn(picture) is not None:
                    raise self._refuse_turned(image_id)
            if self._tables.mask_folder is None:
                self._check_masks(image_id, size)
        if self._labels.has_masks:
            self._labels.masks(self.ids[0])  # Of PNG files only their headers are read here.
        self._has_fitting_photographs = True
        return list(self.ids)

    def categories(self, kind: str) -> list[str]:
        """Names of the classes; the `classes` of a target index them.

        Raises:
            DatasetError: another kind than `instances` is asked for.
        """
        self._refuse_kind(kind)
        return list(self._labels.categories)

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Labels of images.

        Returns:
            For `instances`, one mapping per image: `image_id`, the name of its file; `annotated_in`, the table of boxes; `height`
            and `width` of the photograph in pixels, 0 if its header is damaged; `corners` float64 (n, 4), x1, y1, x2, y2 of the
            boxes in shares of the photograph's sides; `classes` int64 (n,) into `categories`; `group` bool (n,), whether a box is
            around a group; `verified` int64 (k,), the classes that were looked for; and, if the dataset has masks, `masks`: for
            each box a `StoredMask`, or None where it has none.

        Raises:
            DatasetError: another kind is asked for, an image is none of the dataset's, or the annotations do not follow the
                preprocessing.
        """
        self._refuse_kind(kind)
        self._refuse_preprocessed()
        foreign = next((image_id for image_id in ids if image_id not in self._known), None)
        if foreign is not None:
            raise DatasetError(f"dataset {self.name!r} has no image {printable_name(foreign)!r}; score the images of `ids`")
        targets: list[Target] = []
        for image_id in ids:
            height, width = upright_size(self.path(image_id)) or (0, 0)
            targets.append({"image_id": image_id, "height": height, "width": width} | self._labels.of_image(image_id))
        return targets

    def _check_masks(self, image_id: str, size: tuple[int, int]) -> None:
        """Read the masks of an image, whose size is height and width in pixels. Raises DatasetError if one is damaged."""
        for mask in self._labels.masks(image_id):
            if mask is not None:
                mask.run_lengths(size)

    def _refuse_kind(self, kind: str) -> None:
        if kind != "instances":
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations, only `instances`; use reference: original")

    def _refuse_preprocessed(self) -> None:
        if self.preprocessing != "native":
            raise DatasetError(
                f"dataset {self.name!r}: boxes and masks are those of the original pixels and do not follow preprocessing "
                f"{self.preprocessing!r}; use native, or reference: original"
            )

    def _refuse_turned(self, image_id: str) -> DatasetError:
        return DatasetError(
            f"{self.path(image_id)}: its metadata turn it, while boxes are shares of the sides of the pixels as they are stored; "
            "give the photographs of MPEG or Open Images without EXIF orientation, or remove the tag"
        )
