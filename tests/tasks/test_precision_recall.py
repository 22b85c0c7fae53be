"""Precision-recall curves of many replicates at once, against a walk through lists, and in blocks and groups of other sizes."""

import numpy as np
import pytest
from pycocotools.cocoeval import Params

from icmbench.tasks import matches as matches_module
from icmbench.tasks import precision_recall
from icmbench.tasks.matches import THRESHOLDS
from icmbench.tasks.matching import Detections, Labels, average_precision, match
from icmbench.tasks.overlaps import box_overlap


def average_precision_of_lists(matches, weights):
    """AP of every curve, one match after the other in plain Python: COCOeval's accumulate on lists that repeat each image."""
    values = np.full((len(matches.areas), len(THRESHOLDS), matches.categories), np.nan)
    for curve in range(values.size):
        area, threshold, category = np.unravel_index(curve, values.shape)
        counts = matches.label_counts[area] & (matches.label_category == category)
        positives = weights[matches.label_image[counts]].sum()
        if positives == 0:
            continue
        match_of = dict(zip(matches.position[matches.curve == curve], matches.true[matches.curve == curve], strict=True))
        right, wrong, points = 0.0, 0.0, []
        for k in np.flatnonzero(matches.category == category):
            weight = weights[matches.image[k]]
            if k not in match_of:
                wrong += weight * matches.inside[area, k]
            elif match_of[k]:
                right += weight
            points.append((right / positives, right / (right + wrong + np.spacing(1))))
        levels = [
            max((precision for recall, precision in points if recall >= level), default=0) for level in np.linspace(0, 1, 101)
        ]
        values[area, threshold, category] = np.mean(levels)
    return values


@pytest.mark.parametrize("seed", range(4))
def test_curves_of_all_lengths_equal_a_walk_through_lists(seed):
    """Long curves beside short ones, ignored labels, categories without labels, replicates in several groups."""
    random = np.random.default_rng(seed)
    images, categories, n, g = 15, 4, 260, 90
    image, category = random.integers(0, images, g), random.choice(categories, g, p=[0.9, 0.06, 0.04, 0])
    boxes = np.concatenate([random.random((g, 2)) * 90, np.exp(random.normal(4, 1, (g, 2)))], axis=1)
    crowd = random.random(g) < 0.1
    labels = Labels(image, category, boxes[:, 2] * boxes[:, 3], crowd, crowd | (random.random(g) < 0.1))
    pick = random.integers(0, g, n)
    found = boxes[pick] * random.uniform(0.85, 1.15, (n, 4))
    classes = np.where(random.random(n) < 0.9, category[pick], random.integers(-1, categories, n))
    detections = Detections(image[pick], classes, found[:, 2] * found[:, 3], random.random(n))
    matches = match(detections, labels, box_overlap(found, boxes, crowd), range(images), categories)
    weights = random.multinomial(images, np.full(images, 1 / images), 5).astype(np.float64)
    weights[0] = 0.5  # Not whole, yet exact.
    together = average_precision(matches, weights)
    for row, values in zip(weights, together, strict=True):
        np.testing.assert_allclose(values, average_precision_of_lists(matches, row), rtol=0, atol=1e-9)
        np.testing.assert_array_equal(average_precision(matches, row), values)
    assert matches.curve.size > 500 and np.isnan(together[:, :, :, 3]).all()


def test_replicates_in_small_groups_and_blocks_are_the_same(monkeypatch):
    random = np.random.default_rng(0)
    image = random.integers(0, 9, 60)
    label, no = np.zeros(60, int), np.zeros(60, bool)
    boxes = np.concatenate([random.random((60, 2)) * 300, np.full((60, 2), 40.0)], axis=1)
    labels = Labels(image, label, np.full(60, 1600.0), no, no)
    found = boxes + random.normal(0, 4, boxes.shape)
    detections = Detections(image, label, found[:, 2] * found[:, 3], random.random(60))
    weights = random.multinomial(9, np.full(9, 1 / 9), 200).astype(np.float64)

    def values():
        return average_precision(match(detections, labels, box_overlap(found, boxes, no), range(9), 1), weights)

    expected = values()
    monkeypatch.setattr(matches_module, "BLOCK_SIZE", 1)
    monkeypatch.setattr(matches_module, "FEWEST_CURVES", 3)
    monkeypatch.setattr(matches_module, "PIECE_SIZE", 7)
    np.testing.assert_array_equal(values(), expected)
    monkeypatch.setattr(precision_recall, "LARGEST_ARRAY", 3000)  # Replicates in groups of fewer than 128 columns.
    np.testing.assert_array_equal(values(), expected)
    monkeypatch.setattr(precision_recall, "LARGEST_TABLE", 0)
    np.testing.assert_array_equal(values(), expected)


def test_the_recall_levels_are_those_of_cocoeval():
    np.testing.assert_array_equal(precision_recall.RECALLS, Params().recThrs)
    np.testing.assert_array_equal(THRESHOLDS, Params().iouThrs)
    for total in [*range(1, 300), 1000, 7259]:
        expected = np.searchsorted(Params().recThrs, np.arange(total + 1) / total, side="right")
        np.testing.assert_array_equal(precision_recall._levels_by_right(total), expected)
