"""Run lengths that stand for other masks than those that were meant are known by their boxes."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.run_length_boxes import mask_boxes
from icmbench.tasks.instance_segmentation import InstanceSegmentation

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode under numpy 2.


def runs_of(samples):
    """Run lengths of flat samples of 0 and 1, beginning with those of 0."""
    flat = np.concatenate([[0], samples.astype(np.int8), [2]])
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0)


WAYS = {
    "columns": lambda mask: runs_of(mask.ravel(order="F")),
    "rows": lambda mask: runs_of(mask.ravel()),
    "object first": lambda mask: runs_of(1 - mask.ravel(order="F")),
}


@pytest.fixture(scope="module")
def root(shared):
    return shared / "data" / "coco"


@pytest.fixture(scope="module")
def labels(root):
    return json.loads((root / "annotations" / "instances_val2017.json").read_bytes())


@pytest.fixture(scope="module")
def masks(labels):
    """The mask of each annotation, uint8 (height, width), as pycocotools makes it."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in labels["images"]}
    made = []
    for annotation in labels["annotations"]:
        shape, size = annotation["segmentation"], sizes[annotation["image_id"]]
        encoded = coco_mask.frPyObjects(shape, *size)
        made.append(coco_mask.decode(coco_mask.merge(encoded) if isinstance(shape, list) else encoded))
    return made


@pytest.fixture
def make_task(root, labels, masks, tmp_path):
    """A function that writes COCO's annotations with run lengths and opens instance segmentation on them."""

    def make(way=lambda k: "columns", compressed=False, change=lambda annotation, mask: None, limit=None):
        data = copy.deepcopy(labels)
        for k, (annotation, mask) in enumerate(zip(data["annotations"], masks, strict=True)):
            shape = {"size": list(mask.shape), "counts": WAYS[way(k)](mask).tolist()}
            if compressed:
                shape["counts"] = coco_mask.frPyObjects(shape, *mask.shape)["counts"].decode()
            annotation["segmentation"] = shape
            change(annotation, mask)
        (tmp_path / "masks.json").write_text(json.dumps(data))
        dataset = Coco(root / "val2017", instances=tmp_path / "masks.json", limit=limit)
        return InstanceSegmentation(dataset, SimpleNamespace(categories=dataset.categories("instances"), fingerprint=""))

    return make


def test_boxes_and_pixels_are_those_of_pycocotools(masks):
    sizes = np.array([mask.shape for mask in masks])
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    for way, options in (("columns", {}), ("rows", {"by_rows": True}), ("object first", {"first": 0})):
        boxes, pixels = mask_boxes([WAYS[way](mask) for mask in masks], sizes, **options)
        np.testing.assert_array_equal(boxes, coco_mask.toBbox(encoded))
        assert pixels.tolist() == [mask.sum() for mask in masks]


def test_masks_without_a_pixel_and_runs_without_a_length_have_their_boxes():
    runs = [np.array([12]), np.array([0, 0, 5, 0, 0, 1, 6]), np.array([0, 12])]
    boxes, pixels = mask_boxes(runs, np.array([[4, 3]] * 3))
    assert pixels.tolist() == [0, 1, 12] and boxes.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 3, 4]]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("compressed", [False, True])
def test_cocos_own_masks_are_scored(make_task, limit, compressed, caplog):
    assert len(make_task(compressed=compressed, limit=limit).ids) == (limit or 79)
    assert not caplog.records


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("way", "remedy"),
    [("rows", "encode the masks anew, in column-major order"), ("object first", "write a run of 0 before such runs")],
)
def test_run_lengths_in_another_order_are_refused_with_the_remedy(make_task, way, remedy, compressed, limit):
    where = r"masks\.json: annotation \d+ of image '\d+\.jpg': its run lengths cover the box .*, but `bbox` is"
    with pytest.raises(DatasetError, match=rf"{where} .* masks of run lengths do not fit their boxes\): .*{remedy}"):
        make_task(lambda k: way, compressed, limit=limit)


def test_some_run_lengths_among_others_are_found_too(make_task):
    with pytest.raises(DatasetError, match=r"\(\d+ of the 624 masks .* in column-major order"):
        make_task(lambda k: "rows" if k % 3 == 0 else "columns")
    assert make_task(lambda k: "rows" if k % 100 == 0 else "columns").ids  # A few may be another mistake, or none.


def test_masks_of_other_objects_are_refused(make_task, masks):
    other = iter(masks[1:] + masks[:1])

    def exchange(annotation, mask):
        shape = next(other)
        annotation["segmentation"]["counts"] = WAYS["columns"](shape if shape.shape == mask.shape else mask[::-1, ::-1]).tolist()

    with pytest.raises(DatasetError, match=r"\(\d+ of the 624 masks .*\); give the masks of these boxes, or correct `bbox`"):
        make_task(change=exchange)


def test_boxes_of_whole_pictures_and_rounded_ones_are_scored(make_task, caplog):
    def whole(annotation, mask):
        annotation["bbox"] = [0, 0, mask.shape[1], mask.shape[0]]

    def rounded(annotation, mask):  # To the corners of the last pixels, as many tools do.
        x, y, width, height = annotation["bbox"]
        annotation["bbox"] = [int(x), int(y), max(int(width) - 1, 1), max(int(height) - 1, 1)]

    for change in (whole, rounded):
        assert len(make_task(change=change).ids) == 79
    assert not [record for record in caplog.records if "run lengths" in record.message]


def test_areas_that_are_not_those_of_the_masks_are_warned_of(make_task, caplog):
    def shrink(annotation, mask):
        annotation["area"] /= 10

    assert make_task(change=shrink).ids
    (record,) = caplog.records
    assert "624 masks of run lengths have another `area` than their pixels, by a factor of over 4" in record.message
