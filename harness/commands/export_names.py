"""Names of the folders and files of an export, which the codec `folder` finds again.

    dataset / codec label / point / image id with .png in place of its suffix

A label or point that no folder can be named after is written with %XX for the characters in question.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from icmbench.harness.config.errors import UserError

MAX_NAME = 200  # Bytes of one component of a path, with room for the suffix of a temporary file.


def folder_name(text: str) -> str:
    """A label or point as the name of a folder; different texts have different names.

    Example:
        >>> folder_name("quality=20"), folder_name("org/model v2"), folder_name("..")
        ('quality=20', 'org%2Fmodel%20v2', '%2E.')
    """
    name = quote(text, safe=",=+@")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if not name or len(name) > MAX_NAME:
        raise UserError(f"{text[:60]!r} is {'empty' if not name else 'too long'} for the name of a folder: give it another label")
    return name


def file_names(ids: Sequence[str]) -> dict[str, str]:
    """The file of each image, below the folder of a point.

    It is the id with .png in place of its suffix. Images whose files would be one file keep their suffix before it, as in
    `a.jpg.png` and `a.png.png`. The codec `folder` finds each of them by the id.

    Args:
        ids: the ids of all images of a dataset.

    Raises:
        UserError: an id names no file below a folder, or two images would still share a file.

    Example:
        >>> file_names(["n01/x.JPEG", "a.jpg", "a.png"])
        {'n01/x.JPEG': 'n01/x.png', 'a.jpg': 'a.jpg.png', 'a.png': 'a.png.png'}
    """
    plain = {image_id: f"{posixpath.splitext(image_id)[0]}.png" for image_id in ids}
    counts = Counter(plain.values())
    names = {image_id: name if counts[name] == 1 else f"{image_id}.png" for image_id, name in plain.items()}
    owners: dict[str, str] = {}
    for image_id, name in names.items():
        if not _is_below(image_id) or any(len(part.encode(errors="replace")) > MAX_NAME + 4 for part in name.split("/")):
            raise UserError(f"the image id {image_id!r} can name no file below a folder: rename the photograph")
        _refuse_other(image_id, owners.setdefault(name, image_id), name)
    for image_id in names:  # How `folder` looks: a file named as the id, then one named as the id and a suffix.
        for name in (image_id, f"{image_id}.png"):
            _refuse_other(image_id, owners.get(name, image_id), name)
    return names


def _is_below(image_id: str) -> bool:
    parts = image_id.split("/")
    return bool(image_id) and "\0" not in image_id and not {"", ".", ".."} & {*parts}


def _refuse_other(image_id: str, owner: str, name: str) -> None:
    if owner != image_id:
        raise UserError(f"the images {owner!r} and {image_id!r} would both be {name!r} in an export: rename one of the photographs")
