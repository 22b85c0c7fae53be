"""How much a detection overlaps a label, as COCOeval measures it: IoU of boxes and masks, similarity of keypoints.

Each function takes the objects of all images and returns an `Overlap`, which is called once per image and category with the indices
of d detections and g labels and returns float64 (d, g) in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Overlap = Callable[[Ints, Ints], Floats]

# Standard deviation of each of the 17 person keypoints relative to the object's scale, as published with COCO's keypoint metric.
COCO_SIGMAS = np.array([0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89]) / 10


def box_overlap(detections: Floats, labels: Floats, crowd: Bools) -> Overlap:
    """IoU of boxes, by pycocotools.

    Args:
        detections: float64 (n, 4), x, y, width, height.
        labels: float64 (m, 4), x, y, width, height.
        crowd: bool (m,). For a crowd label the overlap is the share of the detection that lies inside it.
    """
    from pycocotools.mask import iou

    flags = crowd.astype(np.uint8)
    return lambda d, g: iou(detections[d], labels[g], flags[g])


def mask_overlap(detections: list[Any], labels: list[Any], crowd: Bools) -> Overlap:
    """IoU of masks, by pycocotools.

    Args:
        detections: n masks as COCO run lengths, `{"size": [height, width], "counts": bytes}`.
        labels: m masks in the same form.
        crowd: bool (m,). For a crowd label the overlap is the share of the detection that lies inside it.
    """
    from pycocotools.mask import iou

    flags = crowd.astype(np.uint8)
    return lambda d, g: iou([detections[i] for i in d], [labels[i] for i in g], flags[g])


def keypoint_overlap(detections: Floats, labels: Floats, boxes: Floats, areas: Floats, sigmas: Floats = COCO_SIGMAS) -> Overlap:
    """Object keypoint similarity of COCO: the mean of exp(-distance^2 / (2 area (2 sigma)^2)) over the label's visible keypoints.

    For a label without visible keypoints, a keypoint's distance is how far it lies outside the label's box, after the box has been
    extended by its own size on every side.

    Args:
        detections: float64 (n, k, 2 or more), x, y of k keypoints in pixels.
        labels: float64 (m, k, 3), x, y and visibility (0: not labelled).
        boxes: float64 (m, 4), x, y, width, height of the labels.
        areas: float64 (m,), areas of the labels in square pixels.
        sigmas: float64 (k,).
    """
    variances = (2 * sigmas) ** 2

    def overlap(d: Ints, g: Ints) -> Floats:
        found_points, label_points, box = detections[d][:, None, :, :2], labels[g][None], boxes[g][None, :, None]
        visible: Bools = label_points[..., 2] > 0
        low, high = box[..., :2] - box[..., 2:], box[..., :2] + 2 * box[..., 2:]
        outside = np.maximum(0, low - found_points) + np.maximum(0, found_points - high)
        any_visible: Bools = np.any(visible, axis=-1, keepdims=True)
        distance = np.where(any_visible[..., None], found_points - label_points[..., :2], outside)
        error = (distance**2).sum(axis=-1) / variances / (areas[g][None, :, None] + np.spacing(1)) / 2
        used = visible | ~any_visible
        return (np.exp(-error) * used).sum(axis=-1) / used.sum(axis=-1)

    return overlap
