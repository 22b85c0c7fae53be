"""Open Images: its challenge's average precision, by hand and against the reference evaluator's values, and its tables."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools.mask import decode

from icmbench.results.bootstrap import _takes_batches
from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.openimages import OpenImages
from icmbench.tasks.detection import Detection
from icmbench.tasks.instance_segmentation import InstanceSegmentation
from icmbench.tasks.keypoints import Keypoints
from icmbench.tasks.openimages_ap import average_precision

from . import coco_files
from .openimages_files import (
    BOXES,
    HEIGHT,
    IDS,
    LABELS,
    WIDTH,
    Repeater,
    entries,
    open_tables,
    rectangle,
    table,
    write_photographs,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' decode warns under numpy 2.
A, B, C = IDS


def box(image_id, x1, x2, group=0, name="cat"):
    """A label over the whole height, from pixels."""
    return image_id, name, x1 / WIDTH, x2 / WIDTH, 0, 1, group


def seen(*images, names=("cat",)):
    return [(image_id, name, 1) for image_id in images or IDS for name in names]


@pytest.mark.parametrize("part", ["det", "seg"])
def test_every_class_has_the_reference_evaluators_value(shared, part, capsys):
    folder = shared / "conformance" / "openimages"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    path = Path(__file__).parents[1] / "conformance" / "openimages.py"
    spec = importlib.util.spec_from_file_location("conformance_openimages", path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.check(folder / part), capsys.readouterr().out


# One class on three images; the value follows from the rules by hand.
CASES = {
    "right": ([box(A, 0, 40)], [[("cat", 0.5, 0, 40)], [], []], 1.0),
    "never detected": ([box(A, 0, 40)], [[], [], []], 0.0),
    "an overlap of one half is enough": ([box(A, 0, 40)], [[("cat", 0.5, 0, 20)], [], []], 1.0),
    "less is not": ([box(A, 0, 40)], [[("cat", 0.5, 0, 19)], [], []], 0.0),
    # COCO would give the second detection to the second label, which it overlaps by 0.70.
    "no second choice": ([box(A, 0, 40), box(A, 8, 48)], [[("cat", 0.9, 0, 40), ("cat", 0.8, 1, 41)], [], []], 0.5),
    "a wrong one first": ([box(A, 0, 40)], [[("cat", 0.5, 0, 40)], [("cat", 0.9, 0, 40)], []], 0.5),
    "a wrong one last": ([box(A, 0, 40)], [[("cat", 0.9, 0, 40)], [("cat", 0.5, 0, 40)], []], 1.0),
    # Precision is 1/2 at the first right one and 2/3 at the second, and its envelope is 2/3 at both.
    "the envelope": (
        [box(A, 0, 40), box(B, 0, 40)],
        [[("cat", 0.8, 0, 40)], [("cat", 0.7, 0, 40)], [("cat", 0.9, 0, 40)]],
        2 / 3,
    ),
    "all within a group are one": ([box(A, 0, 80, 1)], [[("cat", 0.9, 0, 10), ("cat", 0.8, 20, 30)], [], []], 1.0),
    "half within a group is enough": ([box(A, 0, 40, 1)], [[("cat", 0.9, 30, 50)], [], []], 1.0),
    "less is outside": ([box(A, 0, 40, 1)], [[("cat", 0.9, 31, 51)], [], []], 0.0),
    "a missed group": ([box(A, 0, 40), box(B, 0, 40, 1)], [[("cat", 0.9, 0, 40)], [], []], 0.5),
    # The group has the score 0.8 of its best detection, after the wrong one.
    "a group has its best score": (
        [box(A, 0, 80, 1)],
        [[("cat", 0.7, 0, 10), ("cat", 0.8, 20, 30)], [("cat", 0.9, 0, 10)], []],
        0.5,
    ),
    "a second detection of an object in a group": (
        [box(A, 0, 40), box(A, 0, 80, 1)],
        [[("cat", 0.9, 0, 40), ("cat", 0.8, 0, 40)], [], []],
        1.0,
    ),
    "without width": ([box(A, 0, 40)], [[("cat", 0.5, 0, 40), ("cat", 0.9, 7, 7)], [], []], 1.0),
    "of another class": ([box(A, 0, 40)], [[("cat", 0.5, 0, 40), ("toaster", 0.9, 0, 40)], [], []], 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_by_hand(tmp_path, case):
    labels, detections, value = CASES[case]
    task = Detection(open_tables(tmp_path, labels, seen()), Repeater(*detections))
    assert task.aggregate(entries(task)) == {"mAP": pytest.approx(100 * value, abs=1e-12)}
    assert [metric.name for metric in task.metrics] == ["mAP"]


def test_detections_of_a_class_that_was_not_looked_for_take_no_part(tmp_path):
    detections = Repeater([("cat", 0.5, 0, 40)], [("cat", 0.9, 0, 40)], [])
    looked_everywhere = Detection(open_tables(tmp_path, [box(A, 0, 40)], [(A, "cat", 1), (B, "cat", 0), (C, "dog", 0)]), detections)
    not_in_b = Detection(open_tables(tmp_path, [box(A, 0, 40)], [(A, "cat", 1), (B, "dog", 0), (C, "dog", 0)]), detections)
    assert (looked_everywhere.aggregate(entries(looked_everywhere)), not_in_b.aggregate(entries(not_in_b))) == (
        {"mAP": 50.0},
        {"mAP": 100.0},
    )


def test_classes_without_labels_are_left_out_of_the_mean(tmp_path):
    task = Detection(
        open_tables(tmp_path, [box(A, 0, 40)], seen(names=("cat", "dog"))),
        Repeater([("cat", 0.5, 0, 40)], [("dog", 0.9, 0, 40)], []),
    )
    np.testing.assert_array_equal(average_precision(entries(task)), [1.0, np.nan])
    assert task.aggregate(entries(task)) == {"mAP": 100.0}


def test_masks_are_matched_before_boxes_and_labels_without_a_mask_are_ignored(tmp_path):
    labels = [box(A, 0, 40), box(B, 0, 40), box(C, 0, 40, 1)]
    masks = [(0, rectangle(0, 0, 40, 40)), (2, rectangle(0, 0, 40, 40))]
    half, whole = rectangle(0, 0, 40, 20), rectangle(0, 0, 40, 40)
    found = Repeater([("cat", 0.5, half)], [("cat", 0.9, whole), ("cat", 0.8, whole)], [("cat", 0.7, rectangle(30, 0, 50, 40))])
    task = InstanceSegmentation(open_tables(tmp_path, labels, seen(), masks), found)
    result = entries(task)
    # The first detection of B is left out, and the second is wrong; the mask of A has an IoU of exactly 0.5.
    assert (result.image.tolist(), result.right.tolist(), result.label_image.tolist()) == ([1, 2, 0], [0.0, 1.0, 1.0], [0, 2])
    assert task.aggregate(result) == {"mAP": pytest.approx(100 * 2 / 3)}


def test_empty_masks_are_none(tmp_path):
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    labels = [box(A, 0, 40), box(B, 0, 40)]
    dataset = open_tables(tmp_path, labels, seen(), [(0, rectangle(0, 0, 40, 40)), (1, nothing)])
    task = InstanceSegmentation(dataset, Repeater([("cat", 0.5, 0, 40), ("cat", 0.9, nothing)], [], []))
    assert task.aggregate(entries(task)) == {"mAP": 100.0}
    assert [target["masks"] for target in task.targets(task.ids)][1:] == [[None], []]


def test_weights_score_lists_that_repeat_images(tmp_path):
    labels = [box(A, 0, 40), box(A, 8, 48), box(B, 0, 80, 1), box(C, 0, 20)]
    detections = (
        [("cat", 0.9, 0, 40), ("cat", 0.8, 1, 41)],
        [("cat", 0.85, 0, 10), ("cat", 0.7, 0, 60)],
        [("cat", 0.95, 50, 60), ("cat", 0.3, 0, 20)],
    )
    task = Detection(open_tables(tmp_path, labels, seen()), Repeater(*detections))
    predictions, targets = task.predict([None] * 3, task.ids), task.targets(task.ids)
    weights = np.array([[1, 1, 1], [0, 2, 3], [3, 0, 1], [0, 0, 0], [2, 2, 2]])
    together = task.aggregate(task.statistics(predictions, targets), weights.astype(float))["mAP"]
    for row, value in zip(weights, together, strict=True):
        repeated = np.repeat(np.arange(3), row)
        again = task.statistics([predictions[k] for k in repeated], [targets[k] for k in repeated])
        np.testing.assert_allclose(value, task.aggregate(again)["mAP"], atol=1e-12)
        np.testing.assert_array_equal(value, task.aggregate(task.statistics(predictions, targets), row.astype(float))["mAP"])
    assert np.isnan(together[3])
    assert _takes_batches(task.aggregate)


@pytest.mark.parametrize("kind", [Detection, InstanceSegmentation])
def test_originals_serve_as_labels(tmp_path, kind):
    write_photographs(tmp_path)
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    found = Repeater([("cat", 0.9, 0, 40), ("toaster", 0.2, 0, 9)], [("dog", 0.8, 4, 12), ("cat", 0.6, nothing)], [])
    task = kind(ImageFolder(tmp_path / "photographs"), found, reference="original", metric="openimages")
    predictions = task.predict([np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3, task.ids)
    targets = task.pseudo_targets(predictions)
    expected = {"mAP": 100.0}
    assert task.aggregate(task.statistics(predictions, targets)) == expected
    task.model = Repeater([("cat", 0.9, 0, 40)], [], [])
    coded = task.predict([np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 3, task.ids)
    assert task.aggregate(task.statistics(coded, targets))["mAP"] < 100.0


def test_predictions_are_those_of_coco(tmp_path):
    """One set of stored predictions serves both metrics."""
    dataset = open_tables(tmp_path)
    tasks = [Detection(dataset, Repeater(), reference="original", metric=metric) for metric in ("coco", "openimages")]
    assert tasks[0].fingerprint == tasks[1].fingerprint
    assert tasks[0].metrics != tasks[1].metrics


def test_keypoints_keep_cocos_metric(tmp_path):
    assert Keypoints(open_tables(tmp_path), Repeater(), reference="original").metrics == Keypoints.metrics


def test_the_metric_fits_the_labels(tmp_path):
    with pytest.raises(DatasetError, match="say only of some classes"):
        Detection(open_tables(tmp_path), Repeater(), metric="coco")
    coco_files.write_pictures(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(coco_files.instances()))
    coco = Coco(tmp_path / "images", instances=tmp_path / "instances.json")
    with pytest.raises(DatasetError, match="have no 'corners'"):
        Detection(coco, Repeater(), metric="openimages")
    with pytest.raises(DatasetError, match="was given no masks; add the key `masks`"):
        InstanceSegmentation(open_tables(tmp_path), Repeater())


def test_a_mapping_names_the_datasets_classes(tmp_path):
    boxes = [(A, "Mobile phone", 0, 0.5, 0, 1, 0)]
    dataset = open_tables(tmp_path, boxes, [(A, "Mobile phone", 1), (B, "Cat", 0), (C, "Cat", 0)])
    model = Repeater([("cell phone", 0.9, 0, 40)], [], [])
    assert entries(Detection(dataset, model)).right.tolist() == []
    mapped = Detection(dataset, model, mapping={"cell phone": "Mobile phone"})
    assert mapped.aggregate(entries(mapped)) == {"mAP": 100.0}
    for mapping, sentence in [
        ({"Mobile phone": "cell phone"}, "'Mobile phone' is no category of the model"),
        ({"cell phone": "Telephone"}, "'Telephone' is no category of the dataset"),
        ({"cell phone": "Cat", "cell_phone": "Mobile phone"}, "names one category of the model twice"),
    ]:
        with pytest.raises(DatasetError, match=sentence):
            Detection(dataset, model, mapping=mapping)
    with pytest.raises(DatasetError, match="on originals the model's own names are compared"):
        Detection(dataset, model, reference="original", mapping={"cell phone": "Cat"})


def test_the_tables_are_read_by_image(tmp_path):
    dataset = open_tables(tmp_path, masks=[(2, rectangle(10, 10, 30, 30))])
    assert dataset.annotated("instances") == [f"{image_id}.png" for image_id in IDS]
    assert dataset.categories("instances") == ["cat", "cell_phone", "dog"]
    first, second, third = dataset.targets("instances", dataset.ids)
    np.testing.assert_array_equal(first["corners"], [[0, 0, 0.5, 1], [0.25, 0.1, 1, 0.5]])
    assert (first["classes"].tolist(), first["verified"].tolist(), first["masks"]) == ([0, 1], [0, 1], [None, None])
    assert (second["group"].tolist(), third["verified"].tolist(), third["classes"].tolist()) == ([True], [2], [])
    mask = second["masks"][0].run_lengths((second["height"], second["width"]))
    np.testing.assert_array_equal(decode(mask), rectangle(10, 10, 30, 30))


def test_tables_as_open_images_publishes_them(tmp_path):
    """Further columns, label names such as /m/01yrx, masks in PNG files of another size, and rows of other images."""
    write_photographs(tmp_path, suffix=".jpg")
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    rows = [(A, "xclick", "/m/01yrx", 1, 0, 0.5, 0, 1, 0, 0, 0, 0, 0), ("ffff", "xclick", "/m/01yrx", 1, 0, 1, 0, 1, 0, 0, 0, 0, 0)]
    rows += [(B, "xclick", "/m/0", 1, 0, 1, 0, 1, 0, 0, 0, 0, 0)]
    labels = [(image_id, "verification", name, 0) for image_id in (*IDS, "ffff") for name in ("/m/01yrx", "/m/0")]
    (tmp_path / "png" / "0").mkdir(parents=True)
    Pillow.fromarray(rectangle(0, 0, 80, 80, (80, 160))).save(tmp_path / "png" / "0" / f"{A}_m01yrx_1.png")
    columns = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
    masks = [(f"{A}_m01yrx_1.png", A, "/m/01yrx", "1", "0.000000", "0.500000", "0.000000", "1.000000", "0.8", "")]
    dataset = OpenImages(
        tmp_path / "photographs",
        boxes=table(tmp_path / "boxes.csv", header, rows),
        labels=table(tmp_path / "labels.csv", "ImageID,Source,LabelName,Confidence", labels),
        image_list=table(tmp_path / "list.lst", f"{A}.png", [(B,), (f"validation/{C}",)]),
        masks=table(tmp_path / "segmentation.csv", columns, masks),
        mask_folder=tmp_path / "png",
        classes=table(tmp_path / "classes.csv", "LabelName,DisplayName", [("/m/01yrx", "Cat")]),
    )
    assert dataset.ids == [f"{image_id}.jpg" for image_id in IDS]
    task = InstanceSegmentation(dataset, Repeater([("cat", 0.9, 0, 40)], [], []))
    assert dataset.categories("instances") == ["Cat"]
    np.testing.assert_array_equal(decode(task.targets(task.ids)[0]["masks"][0]), rectangle(0, 0, 40, 40))
    assert task.aggregate(entries(task)) == {"mAP": 100.0}


# A damaged value of a table, and what must be named beside file and line.
BOX_DAMAGE = [
    ({2: "-0.1"}, "`XMin` is '-0.1', not a share"),
    ({2: "nan"}, "`XMin` is 'nan', not a share"),
    ({2: "1_0"}, "`XMin` is '1_0', not a share"),
    ({2: ""}, "`XMin` is '', not a share"),
    ({2: "٠"}, "`XMin` is '٠', not a share"),
    ({3: "40"}, "`XMax` is '40', not a share"),
    ({3: "0"}, "`XMax` is '0', not more than `XMin`, which is 0"),
    ({5: "0"}, "`YMax` is '0', not more than `YMin`, which is 0"),
    ({6: "-1"}, "`IsGroupOf` is '-1', not 0 or 1"),
    ({6: "yes"}, "`IsGroupOf` is 'yes', not 0 or 1"),
    ({1: ""}, "`LabelName` is '', not the name of a class"),
    ({1: "Cat"}, "'Cat' and 'cat' differ only in spelling"),
    ({0: ""}, "`ImageID` is '', not the ImageID of an image"),
    ({0: f"{A}.jpg"}, f"`ImageID` is '{A}.jpg', not '{A}'"),
    ({0: A.upper()}, f"`ImageID` is '{A.upper()}', not '{A}'"),
]


@pytest.mark.parametrize(("damage", "sentence"), BOX_DAMAGE)
def test_a_wrong_box_is_named(tmp_path, damage, sentence):
    rows = [list(row) for row in BOXES]
    for column, value in damage.items():
        rows[0][column] = value
    with pytest.raises(DatasetError) as error:
        open_tables(tmp_path, rows)
    assert sentence in str(error.value) and str(tmp_path / "boxes.csv") in str(error.value)
    assert "line 2" in str(error.value) or "spelling" in str(error.value)


def test_wrong_tables_are_named(tmp_path):
    def refused(sentence, **changed):
        with pytest.raises(DatasetError, match=sentence):
            open_tables(tmp_path, **changed)

    refused("boxes.csv: line 5 repeats the box of line 2", boxes=[*BOXES, BOXES[0]])
    refused("labels.csv: line 2: `Confidence` is '0.7', not 0 or 1, as people's", labels=[(A, "cat", 0.7), *LABELS])
    refused("labels.csv: 1 of the 3 images have neither labels nor boxes, the first is '00000000000000c3.png'", labels=LABELS[:4])
    refused("line 3 lists '00000000000000a1' again, after line 1", image_list=table(tmp_path / "l.txt", A, [(B,), (A,)]))
    refused("1 of the 2 images that .* lists are missing, the first is ffff", image_list=table(tmp_path / "l.txt", A, [("ffff",)]))
    refused("lists no image", image_list=table(tmp_path / "l.txt", "", []))
    refused("line 2 .* repeats a label name", classes=table(tmp_path / "c.csv", "cat,Cat", [("cat", "Dog")]))
    refused("line 2 .* is no label name and", classes=table(tmp_path / "c.csv", "cat,Cat", [("dog",)]))
    refused("`mask_folder` is the folder of the PNG files that `masks`", mask_folder=tmp_path)
    refused("no such annotations. MPEG VCM: take the lists", image_list=tmp_path / "absent.txt")
    with pytest.raises(DatasetError, match=r"needs the columns .*IsGroupOf"):
        OpenImages(tmp_path / "photographs", table(tmp_path / "b.csv", "ImageID,LabelName", []), tmp_path / "labels.csv")


def test_photographs_that_do_not_fit_are_named(tmp_path):
    dataset = open_tables(tmp_path)
    exif = Pillow.Exif()
    exif[0x0112] = 3
    Pillow.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "photographs" / f"{B}.png", exif=exif)
    with pytest.raises(DatasetError, match=f"{B}.png: its metadata turn it"):
        Detection(dataset, Repeater())
    with pytest.raises(DatasetError, match="do not follow preprocessing 'short:20'"):
        Detection(open_tables(tmp_path, preprocessing="short:20"), Repeater())
    write_photographs(tmp_path, [A], ".jpg")
    with pytest.raises(DatasetError, match=f"{A}.* are both image '{A}'; keep one of them"):
        open_tables(tmp_path)


MASKS = [(0, rectangle(0, 0, 40, 40)), (2, rectangle(10, 10, 60, 30))]
MASK_DAMAGE = [
    ({"Mask": "!"}, "line 2: `Mask` is no base64"),
    ({"Mask": "eJwLMA=="}, "line 2: `Mask` is no base64 of compressed run lengths"),
    ({"Mask": "eJwzMDAwAAACAQCx"}, "line 2: `Mask` is no base64 of compressed run lengths"),
    ({"ImageWidth": "40"}, "line 2: `ImageWidth` and `ImageHeight` are 40x40, its photograph has 80x40"),
    ({"ImageWidth": "80.5"}, "line 2: `ImageWidth` is '80.5', not a whole number of pixels"),
    ({"IsGroupOf": "1"}, "line 2 .* `IsGroupOf` is another one than that of its box, line 2 of"),
    ({"XMax": "0.51"}, "line 2 .*boxes.csv has no box of this image and class with these coordinates"),
    ({"LabelName": "dog"}, "line 2 .*boxes.csv has no box of this image and class"),
    ({"LabelName": "at"}, "line 2: `LabelName` is 'at', not a class of the boxes or image-level labels"),
    ({"MaskPath": "../m.png"}, None),  # The column is not used where the masks are in the CSV.
]


@pytest.mark.parametrize(("damage", "sentence"), MASK_DAMAGE)
def test_a_wrong_mask_is_named_before_anything_is_coded(tmp_path, damage, sentence):
    import pandas as pd

    open_tables(tmp_path, masks=MASKS)
    frame = pd.read_csv(tmp_path / "masks.csv", dtype=str)
    for column, value in damage.items():
        frame.loc[0, column] = value
    frame.to_csv(tmp_path / "masks.csv", index=False)
    dataset = open_tables(tmp_path)
    dataset = OpenImages(dataset.images, tmp_path / "boxes.csv", tmp_path / "labels.csv", masks=tmp_path / "masks.csv")
    if sentence is None:
        InstanceSegmentation(dataset, Repeater())
    else:
        with pytest.raises(DatasetError, match=sentence):
            InstanceSegmentation(dataset, Repeater())


def test_masks_without_their_files_or_of_other_images_are_named(tmp_path):
    def refused(sentence, **changed):
        with pytest.raises(DatasetError, match=sentence):
            InstanceSegmentation(open_tables(tmp_path, **changed), Repeater())

    refused("line 4 .* its box has a mask already, in line 2", masks=[*MASKS, MASKS[0]])
    folder = tmp_path / "png"
    folder.mkdir()
    refused("line 2: the folder .*png has no mask 'mask0.png'", masks=MASKS, mask_folder=folder)
    for number in range(2):
        Pillow.fromarray(MASKS[number][1]).save(folder / f"mask{number}.png")
    InstanceSegmentation(open_tables(tmp_path, masks=MASKS, mask_folder=folder), Repeater())
    Pillow.fromarray(np.full((40, 80), 7, np.uint8)).save(folder / "mask1.png")
    dataset = open_tables(tmp_path, masks=MASKS, mask_folder=folder)
    with pytest.raises(DatasetError, match=r"mask1.png: a mask has the samples 0 and 255 .*\[7\]"):
        dataset.read(f"{B}.png")
    (folder / "mask1.png").write_bytes(b"no")
    refused("mask1.png: damaged or no PNG", masks=MASKS, mask_folder=folder)
    (tmp_path / "masks.csv").write_text("MaskPath,ImageID,LabelName,BoxXMin,BoxXMax,BoxYMin,BoxYMax\nm.png,ffff,cat,0,1,0,1\n")
    tables = tmp_path / "photographs", tmp_path / "boxes.csv", tmp_path / "labels.csv"
    for options, sentence in [
        ({}, "name their folder as `mask_folder`"),
        ({"mask_folder": folder}, "none of its masks is of one of"),
    ]:
        with pytest.raises(DatasetError, match=sentence):
            InstanceSegmentation(OpenImages(*tables, masks=tmp_path / "masks.csv", **options), Repeater())


def test_limits_keep_the_first_images_and_pass_over_the_rows_of_others(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        dataset = open_tables(tmp_path, limit=1)
    assert dataset.ids == [f"{A}.png"]
    assert "1 of 3 rows are of images that the dataset does not have" in caplog.text
    assert dataset.annotated("keypoints") == []
    for call in (lambda: dataset.targets("panoptic", []), lambda: dataset.targets("instances", [f"{B}.png"])):
        with pytest.raises(DatasetError, match="has no"):
            call()


def test_boxes_of_classes_that_are_left_out_repeat_nothing(tmp_path):
    boxes = [box(A, 0, 40), box(A, 0, 40, name="kitten"), box(A, 0, 40, name="tom")]
    classes = table(tmp_path / "classes.csv", "LabelName,DisplayName", [("cat", "Cat")])
    dataset = open_tables(tmp_path, boxes, seen(), classes=classes)
    assert [len(target["classes"]) for target in dataset.targets("instances", dataset.ids)] == [1, 0, 0]


def test_originals_are_scored_by_cocos_metric_unless_another_is_asked_for(tmp_path):
    """Runs are merged where the dataset is not, so that it must not decide."""
    assert Detection(open_tables(tmp_path), Repeater(), reference="original").metrics == Detection.metrics
