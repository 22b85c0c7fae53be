"""Class indices of labels, compared with the classes that they index before anything is coded.

Datasets of this project take care of it as they read their files; a dataset of another package may number its classes from 1, or
have more of them than the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Dataset, DatasetError, Target


def label_classes(dataset: Dataset, image_id: str, target: Target, key: str) -> npt.NDArray[np.int64]:
    """The class indices in an image's labels.

    Args:
        dataset: where the labels are from, for messages.
        image_id: the image.
        target: its labels.
        key: the key of the class indices, one number or several.

    Returns:
        int64 (n,).

    Raises:
        DatasetError: the labels have no such key, or it holds other than whole numbers.
    """
    try:
        classes = np.atleast_1d(np.asarray(target[key]))
    except (KeyError, TypeError, ValueError):
        raise DatasetError(f"dataset {dataset.name!r}: the labels of image {image_id!r} have no numbers as {key!r}") from None
    whole = classes.dtype.kind in "iu" or (
        classes.dtype.kind == "f" and bool((np.isfinite(classes) & (np.rint(classes) == classes)).all())
    )
    if not whole and classes.size:
        raise DatasetError(
            f"dataset {dataset.name!r}: {key!r} of image {image_id!r} holds other than whole numbers; give the indices of classes"
        )
    return classes.astype(np.int64).ravel()


def refuse_class(dataset: Dataset, image_id: str, index: Any, count: int, owner: str) -> DatasetError:
    """The error for a class index of a label that stands for no class; the caller raises it.

    Args:
        dataset: where the label is from.
        image_id: the image.
        index: the class index.
        count: how many classes there are.
        owner: what has these classes, such as "model Lenient".
    """
    return DatasetError(
        f"dataset {dataset.name!r}: a label of image {image_id!r} has class {index}, but {owner} has the {count} classes 0 to "
        f"{count - 1}; number classes from 0 in its order, take what has these classes, or use reference: original"
    )
