"""Any folder of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.decoding import refuse_large
from icmbench.tasks.datasets.images import Preprocessing, list_images, read_image, require_path
from icmbench.tasks.datasets.sizes import PictureHeader, picture_header


class ImageFolder:
    """Any folder of photographs, searched recursively: Kodak, CLIC, DIV2K, Tecnick, your own.

    Subclasses add annotations: they override `annotated` and `targets`, and `_list` if their annotation files name the images.

    Args:
        images: the folder.
        preprocessing: what is done to every image before coding: `native` (nothing), or steps such as `resize:512x512` or
            `short:768,crop:768x768`; see `images.Preprocessing`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Attributes:
        source: where to get the photographs and how to lay them out; shown when they are missing.

    Raises:
        DatasetError: the folder does not exist or holds no images, or an option is invalid.
    """

    source: ClassVar[str] = (
        "Download the photographs (Kodak: the 24 PNG of the Kodak Lossless True Color Image Suite; CLIC: the professional "
        "validation or test set of the Challenge on Learned Image Compression; DIV2K: DIV2K_valid_HR; Tecnick: the RGB 1200x1200 "
        "images of TESTIMAGES) into one folder and give it as `images`."
    )

    def __init__(self, images: Path, preprocessing: str = "native", limit: int | None = None, name: str = "images") -> None:
        self.images = Path(images)
        self.name = name
        self.limit = limit
        self._preprocess = Preprocessing.parse(preprocessing)
        self.preprocessing = self._preprocess.text
        require_path(self.images, "folder", self.source)
        if not self.images.is_dir():
            raise DatasetError(f"{self.images}: not a folder; give the folder that holds the photographs")
        if limit is not None and limit < 1:
            raise DatasetError(f"dataset {name!r}: limit must be at least 1, not {limit}")
        ids = self._list()
        if not ids:
            raise DatasetError(f"{self.images}: no images in this folder. {self.source}")
        self.ids: list[str] = ids[:limit]

    def _list(self) -> list[str]:
        """All image ids, sorted."""
        return list_images(self.images)

    def path(self, image_id: str) -> Path:
        """The file behind an image."""
        return self.images / image_id

    def read(self, image_id: str) -> Image:
        """Decoded, upright, preprocessed pixels.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: the file is missing, damaged, or cannot become 8-bit RGB without a choice.
        """
        return read_image(self.path(image_id), self._preprocess)

    def check_headers(self) -> None:
        """Read the images whose headers tell that they cannot become 8-bit RGB, which names what is wrong before anything is coded.

        A header costs about 0.1 ms, and is read once in a process. This is for experiments that tolerate no image that fails.

        Raises:
            DatasetError: as of `read`; what only the pixels of an image tell, such as translucency, is not among it.
        """
        for image_id in self.ids:
            header = picture_header(self.path(image_id))
            if header is None or not header.is_convertible or self._is_large(header):
                self.read(image_id)

    def _is_large(self, header: PictureHeader) -> bool:
        try:
            refuse_large([header.stored, *self._preprocess.sizes(*header.stored)])
        except ValueError:
            return True
        return False

    def annotated(self, kind: str) -> list[str]:
        """The images with annotations of a kind: none here."""
        return []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """Always raises DatasetError, because there are no annotations here."""
        raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations; use reference: original")
