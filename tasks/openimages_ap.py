"""Average precision of the Open Images challenge: the area under the precision-recall curve of each class, and their mean.

    entries (openimages_matching.py) -> weights of images -> precision and recall after each entry -> envelope -> area -> mean

The area is taken under all steps of the curve, without levels of recall. A class without a label that counts has no average
precision and is left out of the mean; its detections count nowhere. A class that was never detected has 0.

A match depends on its image alone, so weights score any resample of the images: they give the number that the reference gives for
a list that repeats each image `weight` times, provided that no two entries of a class have equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError, MetricSpec, Prediction, Target, image_weights, takes_batches
from icmbench.tasks.datasets.run_length_boxes import mask_boxes
from icmbench.tasks.openimages_matching import Detected, Entries, Labelled, Masks, match_challenge
from icmbench.tasks.overlaps import Bools, Floats, Ints
from icmbench.tasks.run_lengths import decode_counts

METRICS = (MetricSpec("mAP", "%", primary=True, ceiling=100.0),)
NUMBERS_AT_ONCE = 1 << 22  # Of an array with a row for each replicate: 32 MiB.
# What a label must hold, beside masks.
KEYS = ("corners", "classes", "group", "verified", "height", "width")


def average_precision(entries: Entries, weights: Floats | None = None) -> npt.NDArray[np.float64]:
    """AP of every class.

    Args:
        entries: the result of `match_challenge`.
        weights: float64 (images,), how often each image counts; None counts each image once. Or float64 (replicates, images).

    Returns:
        float64 (categories,) in 0..1; NaN if a class has no label that counts. With weights of replicates, float64 (replicates,
        categories).

    Example:
        Two images with one object each. The detection of the first is right, that of the second, with a higher score, is wrong.

        >>> image, category, weight = np.array([0, 1]), np.array([0, 0]), np.ones(2)
        >>> entries = Entries(2, 1, image[::-1], category, np.array([0.0, 1.0]), image, category, weight)
        >>> average_precision(entries), average_precision(entries, np.array([1.0, 0.0]))
        (array([0.25]), array([1.]))
    """
    counted = np.atleast_2d(image_weights(weights, entries.images))
    values = np.full((len(counted), entries.categories), np.nan)
    every = np.arange(entries.categories)
    bounds = zip(*(np.searchsorted(entries.category, every, side=side).tolist() for side in ("left", "right")))
    for category, (start, end) in enumerate(bounds):
        labels = np.flatnonzero(entries.label_category == category)
        step = max(1, NUMBERS_AT_ONCE // max(end - start, len(labels), 1))
        for first in range(0, len(counted), step) if len(labels) else ():
            part = slice(first, first + step)
            positives = _total(counted[part, entries.label_image[labels]] * entries.label_weight[labels])
            areas = _areas(counted[part, entries.image[start:end]], entries.right[start:end], positives)
            values[part, category] = np.where(positives > 0, areas, np.nan)
    return values[0] if weights is None or np.ndim(weights) == 1 else values


def _areas(weights: Floats, right: Floats, positives: Floats) -> Floats:
    """Area under a curve for each replicate.

    Args:
        weights: float64 (replicates, n), weight of each entry's image, by falling score.
        right: float64 (n,), see `Entries`.
        positives: float64 (replicates,), weight of the labels.

    Returns:
        float64 (replicates,).
    """
    # Recall rises and precision peaks only where an entry is right.
    is_right = right > 0
    true = np.cumsum(weights * right, axis=1)[:, is_right]
    false = np.cumsum(weights * ~is_right, axis=1)[:, is_right]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true / (true + false), nan=0.0)
        recall = np.nan_to_num(true / positives[:, None], nan=0.0, posinf=0.0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return _total(np.diff(recall, axis=1, prepend=0.0) * envelope)


def _total(numbers: Floats) -> Floats:
    """Sums of rows, one number after the other, so that a row has the same sum in any company."""
    return np.cumsum(numbers, axis=1)[:, -1] if numbers.shape[1] else np.zeros(len(numbers))


@takes_batches
def challenge_scores(entries: Entries, weights: Floats | None = None) -> dict[str, Any]:
    """The mean AP of all classes that have labels.

    Args:
        entries: the result of `match_challenge`.
        weights: float64 (images,), how often each image counts; None counts each image once. Or float64 (replicates, images).

    Returns:
        `mAP` in percent, NaN if no label counts. A float; with weights of replicates, float64 (replicates,).
    """
    values = 100 * average_precision(entries, weights)
    if values.ndim == 1:
        return {"mAP": _mean_of_defined(values)}
    return {"mAP": np.array([_mean_of_defined(of_one) for of_one in values])}


def _mean_of_defined(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def box_entries(
    predictions: Sequence[Prediction], targets: Sequence[Target], category_map: Ints, categories: int, group_weight: float = 1.0
) -> Entries:
    """Match detected boxes with labels.

    Args:
        predictions: `boxes` (n times x1, y1, x2, y2 in pixels), `scores` and `classes` of each image.
        targets: the labels of each image, as of `datasets/openimages.py`.
        category_map: int (model categories,), the category of the labels that each of the model's means, or -1.
        categories: number of categories of the labels.
        group_weight: how much a group counts.
    """
    boxes = [np.reshape(prediction["boxes"], (-1, 4)).astype(np.float64) for prediction in predictions]
    corners = [box / _sides(target) for box, target in zip(boxes, targets, strict=True)]
    detected = _detected(predictions, category_map, corners, None)
    return match_challenge(detected, _labelled(targets, None), _verified(targets, categories), group_weight)


def mask_entries(
    predictions: Sequence[Prediction], targets: Sequence[Target], category_map: Ints, categories: int, group_weight: float = 1.0
) -> Entries:
    """Match detected masks with labels; the boxes of the detections are those around their masks.

    Args:
        predictions: `height`, `width`, `masks` (compressed counts), `scores` and `classes` of each image.
        targets: the labels of each image, with `masks`.
        category_map: as of `box_entries`.
        categories: as of `box_entries`.
        group_weight: how much a group counts.

    Raises:
        DatasetError: the labels are of a picture of another size.
    """
    masks: list[Any] = []
    corners = []
    for prediction, target in zip(predictions, targets, strict=True):
        size = [int(prediction["height"]), int(prediction["width"])]
        if any(mask is not None and list(mask["size"]) != size for mask in target["masks"]):
            raise DatasetError(
                f"{target.get('annotated_in', 'the dataset')}: the masks of image {target.get('image_id')} are not of its "
                f"{size[1]}x{size[0]} pixels; give the photographs that were annotated"
            )
        masks += [{"size": size, "counts": counts} for counts in prediction["masks"]]
        corners.append(_mask_corners(prediction["masks"], size))
    detected = _detected(predictions, category_map, corners, masks)
    labels = _labelled(targets, [mask for target in targets for mask in target["masks"]])
    return match_challenge(detected, labels, _verified(targets, categories), group_weight)


def _sides(target: Target) -> npt.NDArray[np.float64]:
    return np.array([target["width"], target["height"]] * 2, dtype=np.float64)


def _mask_corners(masks: Sequence[bytes], size: Sequence[int]) -> Floats:
    """Corners around masks of one picture in shares of its sides, float64 (n, 4); without an area for empty masks."""
    runs = [decode_counts(counts) for counts in masks]
    assert all(counts is not None for counts in runs), "predictions hold sound run lengths only"
    boxes, _ = mask_boxes([counts for counts in runs if counts is not None], np.array([size] * len(runs), np.int64).reshape(-1, 2))
    boxes[:, 2:] += boxes[:, :2]
    return np.asarray(boxes / np.array([size[1], size[0]] * 2, np.float64))


def _detected(predictions: Sequence[Prediction], category_map: Ints, corners: Sequence[Floats], masks: Masks | None) -> Detected:
    return Detected(
        image=_images([prediction["scores"] for prediction in predictions]),
        category=category_map[_flat([prediction["classes"] for prediction in predictions], np.int64)],
        corners=np.concatenate([np.zeros((0, 4)), *corners]),
        masks=masks,
        score=_flat([prediction["scores"] for prediction in predictions], np.float64),
    )


def _labelled(targets: Sequence[Target], masks: Masks | None) -> Labelled:
    return Labelled(
        image=_images([target["classes"] for target in targets]),
        category=_flat([target["classes"] for target in targets], np.int64),
        corners=_flat([target["corners"] for target in targets], np.float64).reshape(-1, 4),
        masks=masks,
        group=_flat([target["group"] for target in targets], np.bool_),
    )


def _images(columns: Sequence[Any]) -> npt.NDArray[np.int64]:
    """The index of the image of each object, from one column of each image."""
    return np.repeat(np.arange(len(columns)), [len(column) for column in columns])


def _flat(columns: Sequence[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *(np.ravel(column) for column in columns)]).astype(dtype, copy=False)


def _verified(targets: Sequence[Target], categories: int) -> Bools:
    verified = np.zeros((len(targets), categories), np.bool_)
    for row, target in enumerate(targets):
        verified[row, target["verified"]] = True
    return verified


def lacking_key(target: Mapping[str, Any]) -> str | None:
    """The first key that labels need for this metric and do not have; None if they have all."""
    return next((key for key in KEYS if key not in target), None)
