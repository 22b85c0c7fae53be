"""COCO's JSON format, on a part of the real set and on small generated ones."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.coco_columns import PERSON_JOINTS
from icmbench.tasks.datasets.images import read_image
from icmbench.tasks.datasets.sizes import upright_size
from icmbench.tasks.keypoints import Keypoints


@pytest.fixture(scope="module")
def root(shared):
    return shared / "data" / "coco"


def everything(root, **options):
    annotations = root / "annotations"
    return Coco(
        root / "val2017",
        instances=annotations / "instances_val2017.json",
        keypoints=annotations / "person_keypoints_val2017.json",
        panoptic=annotations / "panoptic_val2017.json",
        panoptic_masks=root / "panoptic_val2017",
        captions=annotations / "captions_val2017.json",
        **options,
    )


def test_images_are_those_that_any_file_lists(root):
    coco = everything(root)
    assert len(coco.ids) == 177
    assert {kind: len(coco.annotated(kind)) for kind in ("instances", "keypoints", "panoptic", "captions", "class")} == {
        "instances": 79,
        "keypoints": 79,
        "panoptic": 100,
        "captions": 79,
        "class": 0,
    }
    alone = Coco(root / "val2017", instances=root / "annotations" / "instances_val2017.json")
    assert alone.ids == coco.annotated("instances") == sorted(alone.ids)
    assert len(Coco(root / "val2017").ids) == 177


def test_limit_restricts_images_and_labels(root):
    whole, part = everything(root), everything(root, limit=10)
    assert part.ids == whole.ids[:10]
    assert set(part.annotated("instances")) == set(whole.annotated("instances")) & set(part.ids)
    assert part.limit == 10


def test_targets_equal_the_file(root):
    coco = everything(root)
    raw = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    numbers = {image["file_name"]: image["id"] for image in raw["images"]}
    names = {category["id"]: category["name"] for category in raw["categories"]}
    ids = coco.annotated("instances")
    assert sum(len(target["classes"]) for target in coco.targets("instances", ids)) == len(raw["annotations"]) == 624
    for image_id, target in zip(ids, coco.targets("instances", ids)):
        rows = [row for row in raw["annotations"] if row["image_id"] == numbers[image_id]]
        assert target["boxes"].shape == (len(rows), 4) and target["boxes"].dtype == np.float64
        assert target["boxes"].tolist() == [row["bbox"] for row in rows]
        assert target["areas"].tolist() == [row["area"] for row in rows]
        assert target["crowd"].tolist() == [row["iscrowd"] == 1 for row in rows]
        assert [coco.categories("instances")[k] for k in target["classes"]] == [names[row["category_id"]] for row in rows]
        assert target["segmentations"] == [row["segmentation"] for row in rows]
        assert coco.read(image_id).shape[:2] == (target["height"], target["width"])


def test_keypoints_captions_and_segments(root):
    coco = everything(root)
    people = coco.targets("keypoints", coco.annotated("keypoints"))
    assert all(target["keypoints"].shape[1:] == (17, 3) for target in people)
    assert sum((target["labelled"] > 0).sum() for target in people) == 68
    assert sum(len(target["captions"]) for target in coco.targets("captions", coco.annotated("captions"))) == 395
    assert len(coco.categories("panoptic")) == 133 and coco.things().sum() == 80
    (segments,) = coco.targets("panoptic", coco.annotated("panoptic")[:1])
    with Pillow.open(segments["mask"]) as picture:
        samples = np.asarray(picture).astype(np.int64) @ [1, 256, 65536]
    assert set(segments["segments"]) == set(np.unique(samples)) - {0}
    assert segments["areas"].tolist() == [(samples == k).sum() for k in segments["segments"]]


def test_labels_do_not_follow_other_pixels(root):
    coco = everything(root, preprocessing="resize:512x512")
    assert coco.read(coco.ids[0]).shape == (512, 512, 3)
    assert len(coco.annotated("captions")) == 79
    for kind in ("instances", "keypoints", "panoptic"):
        with pytest.raises(DatasetError, match=r"do not follow preprocessing 'resize:512x512'; use native"):
            coco.annotated(kind)


@pytest.fixture
def small(tmp_path):
    """Two images in a folder, and a function that writes their annotation file and opens the dataset."""
    for name in ("a.png", "b.png"):
        Pillow.new("RGB", (6, 4)).save(tmp_path / name)
    images = [{"id": 7, "file_name": "a.png", "height": 4, "width": 6}, {"id": 3, "file_name": "b.png", "height": 4, "width": 6}]

    def write(**changes):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 5, "name": "x"}]} | changes))
        return Coco(tmp_path, instances=path)

    return write


def row(**changes):
    return {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 2, 2], "area": 4, "iscrowd": 0, "segmentation": []} | changes


def test_images_without_objects_are_annotated_too(small):
    coco = small(annotations=[row()])
    assert coco.annotated("instances") == ["a.png", "b.png"]
    first, second = coco.targets("instances", coco.ids)
    assert (first["image_id"], len(first["boxes"])) == (7, 1)
    assert (second["image_id"], second["boxes"].shape, second["classes"].dtype) == (3, (0, 4), np.int64)


def test_errors_name_the_file_and_what_is_wrong(small, tmp_path):
    missing = [{"id": k, "file_name": f"{k}.png", "height": 4, "width": 6} for k in range(3)]
    with pytest.raises(DatasetError, match=r"3 of the 3 images that .*labels\.json lists are missing, the first is 0\.png"):
        small(images=missing)
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\): `image_id` is 99, which `images` does not list"):
        small(annotations=[row(image_id=99)])
    with pytest.raises(DatasetError, match=r"labels\.json: `images` is missing or null, not a list"):
        small(images=None)
    with pytest.raises(DatasetError, match=r"`category_id` is 6, which `categories` does not list"):
        small(annotations=[row(category_id=6)])
    with pytest.raises(DatasetError, match=r"annotations\[0\] \(id 1\): `bbox` is \[1, 2\], not four finite numbers"):
        small(annotations=[row(bbox=[1, 2])])
    with pytest.raises(DatasetError, match=r"no 'keypoints' annotations; add the key"):
        small().targets("keypoints", ["a.png"])
    with pytest.raises(DatasetError, match=r"none\.json: no such annotations\. Download from the COCO project"):
        Coco(tmp_path, instances=tmp_path / "none.json")
    with pytest.raises(DatasetError, match="come together"):
        Coco(tmp_path, panoptic_masks=tmp_path)


def test_photographs_of_another_size_are_refused(small, tmp_path):
    coco = small()
    Pillow.new("RGB", (4, 6)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png: 4x6 pixels, but .*labels\.json states 6x4"):
        coco.read("b.png")


def test_photographs_that_exif_turns_are_named_so(small, tmp_path):
    """The annotations state the size in which the file stores the picture, so they stand on pixels that nobody will see."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (6, 4)).save(tmp_path / "b.png", exif=exif)
    coco = small()
    with pytest.raises(DatasetError, match=r"b\.png: 4x6 pixels, but .*labels\.json states 6x4; its EXIF orientation turns it"):
        coco.read("b.png")
    turned = [{"id": 3, "file_name": "b.png", "height": 6, "width": 4}]
    assert small(images=turned).read("b.png").shape == (6, 4, 3)


def test_sizes_that_are_left_out_are_those_of_the_upright_photograph(small, tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (6, 4)).save(tmp_path / "b.png", exif=exif)
    (target,) = small(images=[{"id": 3, "file_name": "b.png", "width": None}]).targets("instances", ["b.png"])
    assert (target["height"], target["width"]) == (6, 4)
    with pytest.raises(DatasetError, match=r"b\.png: 4x6 pixels, but .*labels\.json states 6x6"):
        small(images=[{"id": 3, "file_name": "b.png", "width": 6}]).targets("instances", ["b.png"])
    wanted = r"images\[0\] \(file_name \"b.png\"\): `width` is .*, not a whole number of at least 1"
    for wrong in ("64", 6.5, 0, True, float("nan")):
        with pytest.raises(DatasetError, match=wanted):
            small(images=[{"id": 3, "file_name": "b.png", "width": wrong}])


WRONG = {
    '`iscrowd` is "0", not 0 or 1': {"iscrowd": "0"},
    "`iscrowd` is 2, not 0 or 1": {"iscrowd": 2},
    "`area` is NaN, not a finite number": {"area": float("nan")},
    "`area` is -1, not a finite number of at least 0": {"area": -1},
    "`bbox` is missing or null, not four": {"bbox": None},
    "`bbox` is [0, 0, 0, 2], not four finite": {"bbox": [0, 0, 0, 2]},
    "`bbox` is [0, 0, 2, Infinity], not": {"bbox": [0, 0, 2, float("inf")]},
    "`bbox` is [0, 0, true, 2], not": {"bbox": [0, 0, True, 2]},
    '`image_id` is "7", not a whole number as the ids under `images`': {"image_id": "7"},
    "`category_id` is 5.0, not a whole number": {"category_id": 5.0},
    "`id` is missing or null": {"id": None},
    "`area` is missing or null, not a number, and cannot be taken from its segmentation, which has a polygon": {
        "area": None,
        "segmentation": [[0, 0, 1, None, 1, 1]],
    },
}


@pytest.mark.parametrize("sentence", WRONG)
def test_entries_that_would_change_a_score_are_named(small, sentence):
    with pytest.raises(DatasetError, match=r"labels\.json: annotations\[1\].*" + re.escape(sentence)):
        small(annotations=[row(), row(id=2) | WRONG[sentence]])


def test_names_are_texts_and_what_must_be_unique_is_unique(small):
    images = [{"id": k, "file_name": f"{name}.png", "height": 4, "width": 6} for k, name in enumerate("ab")]
    for changes, sentence in (
        ({"categories": [{"id": 5, "name": "\ud800"}]}, '`name` is "\\ud800", not a text of whole Unicode characters'),
        ({"annotations": [row(), row()]}, "annotations[0] (id 1) and annotations[1] (id 1) have the same `id`, 1"),
        ({"categories": [{"id": 5, "name": "hot dog"}, {"id": 6, "name": "Hot_Dog"}]}, 'have the same `name`, "Hot_Dog"'),
        ({"categories": [{"id": 5, "name": "x"}, {"id": 5, "name": "y"}]}, "have the same `id`, 5"),
        ({"images": [images[0], images[1] | {"id": 0}]}, "have the same `id`, 0"),
        ({"images": [*images, images[0] | {"height": 5}]}, 'have the same `file_name`, "a.png"'),
        ({"images": [*images, images[0] | {"id": 5}]}, 'have the same `file_name`, "a.png"'),
    ):
        with pytest.raises(DatasetError, match=re.escape(sentence)):
            small(**changes)
    assert small(images=[*images, images[0]]).ids == ["a.png", "b.png"]


def test_areas_that_are_left_out_are_exact_or_named(small):
    triangle, square = [0, 0, 4, 0, 4, 3], [0, 0, 2, 0, 2, 2, 0, 2]
    shapes = [[], [triangle], [triangle, square, [1, 1]], {"size": [4, 6], "counts": [1, 5, 18]}, None]
    rows = [row(id=k, segmentation=shape) for k, shape in enumerate(shapes)]
    for entry in rows:
        del entry["area"]
    (target,) = small(annotations=rows).targets("instances", ["a.png"])
    assert target["areas"].tolist() == [4, 6, 10, 5, 4]


@pytest.fixture
def people(tmp_path):
    """A function that writes a keypoint file of one person and opens it."""
    Pillow.new("RGB", (6, 4)).save(tmp_path / "a.png")

    def write(joints=tuple(PERSON_JOINTS), **changes):
        person = row(keypoints=[1, 2, 2] * 17, num_keypoints=17) | changes
        images, categories = [{"id": 7, "file_name": "a.png"}], [{"id": 5, "name": "person", "keypoints": list(joints)}]
        (tmp_path / "k.json").write_text(json.dumps({"images": images, "annotations": [person], "categories": categories}))
        return Coco(tmp_path, keypoints=tmp_path / "k.json")

    return write


def test_keypoints_fit_their_category(people):
    assert people(num_keypoints=None).targets("keypoints", ["a.png"])[0]["labelled"].tolist() == [17]
    for changes, sentence in (
        ({"keypoints": [1, 2, 2] * 16}, "`keypoints` is [1, 2, 2,.* not x, y and visibility, .* of each of the 17 keypoints"),
        ({"keypoints": [1, 2, None] * 17}, "not x, y and visibility"),
        ({"keypoints": None}, "`keypoints` is missing or null"),
        ({"num_keypoints": 0}, "`num_keypoints` is 0, not 17"),
        ({"area": None}, "the area of the person, which its box does not tell"),
        ({"joints": PERSON_JOINTS[::-1]}, "its `keypoints` are those of COCO in another order"),
        ({"joints": ()}, "`keypoints` is [], not the list"),
    ):
        with pytest.raises(DatasetError, match=re.escape(sentence).replace(r"\.\*", ".*")):
            people(**changes)
    hand = people(joints=[f"joint {k}" for k in range(21)], keypoints=[1, 2, 2] * 21, num_keypoints=21)
    with pytest.raises(DatasetError, match=r"k\.json: the keypoints of image 'a\.png' are \(1, 21, 3\), not .* COCO's 17"):
        Keypoints(hand, SimpleNamespace(categories=["person"], fingerprint=""))


def test_captions_are_texts(tmp_path):
    Pillow.new("RGB", (6, 4)).save(tmp_path / "a.png")
    file = tmp_path / "c.json"
    for caption in (None, "", "  ", 5, ["x"]):
        rows = [{"id": 1, "image_id": 7, "caption": "x"}, {"id": 2, "image_id": 7, "caption": caption}]
        file.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}], "annotations": rows}))
        with pytest.raises(DatasetError, match=r"c\.json: annotations\[1\] \(id 2\): `caption` is .*, not a text"):
            Coco(tmp_path, captions=file)
    file.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}], "annotations": []}))
    with pytest.raises(DatasetError, match="1 of the 1 images have no caption"):
        Coco(tmp_path, captions=file)


def test_sizes_are_compared_before_anything_is_coded(small, tmp_path):
    """A task asks for the annotated images when it is made; the photograph that does not fit is the last one."""
    coco = small(annotations=[row()])
    assert coco.annotated("instances") == coco.ids
    Pillow.new("RGB", (7, 4)).save(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png: 7x4 pixels, but .*labels\.json states 6x4; give the photographs"):
        small(annotations=[row()]).annotated("instances")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (6, 4)).save(tmp_path / "b.png", exif=exif)
    with pytest.raises(DatasetError, match="its EXIF orientation turns it and the annotations state the stored size"):
        small().annotated("instances")
    (tmp_path / "b.png").write_bytes(b"damaged")  # An experiment may tolerate a share of these, so that they are named when read.
    assert small().annotated("instances") == ["a.png", "b.png"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif", "bmp"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 5])
def test_headers_tell_the_upright_size(tmp_path, suffix, orientation):
    options = {}
    if orientation is not None and suffix != "bmp":
        options["exif"] = Pillow.Exif()
        options["exif"][0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Pillow.new("RGB", (40, 24)).save(path, **options)
    assert upright_size(path) == read_image(path).shape[:2]


def test_tags_behind_the_pixels_of_a_png_are_seen_when_they_are_read(small, tmp_path):
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (6, 4)).save(tmp_path / "b.png", exif=exif)
    data = (tmp_path / "b.png").read_bytes()
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    (tmp_path / "b.png").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    turned = [{"id": 3, "file_name": "b.png", "height": 6, "width": 4}]
    assert small(images=turned).annotated("instances") == ["b.png"]  # The header says 6x4, and the pixels have the last word.
    with pytest.raises(DatasetError, match="its EXIF orientation turns it"):
        small(images=[{"id": 3, "file_name": "b.png", "height": 4, "width": 6}]).read("b.png")


@pytest.mark.parametrize("box", [[6, 0, 2, 2], [0, 4, 2, 2], [-3, 0, 3, 2], [0, -2.5, 1, 2], [1e6, 1e6, 5, 5]])
@pytest.mark.parametrize("sizes", [{"height": 4, "width": 6}, {}])
def test_boxes_outside_their_picture_are_refused(small, box, sizes):
    """pycocotools counts such a label as missed by every model."""
    images = [{"id": 7, "file_name": "a.png", **sizes}, {"id": 3, "file_name": "b.png", **sizes}]
    inside = [row(id=k, bbox=box) for k, box in enumerate([[5, 3, 9, 9], [-2, -2, 3, 3], [0, 0, 6, 4]])]
    assert small(images=images, annotations=inside).annotated("instances")
    sentence = re.escape(
        f'annotation 9 of image "b.png": `bbox` is {[float(side) for side in box]}, which lies outside its picture of 6x4 pixels '
        "(1 such boxes in all); correct it, or remove the annotation"
    )
    with pytest.raises(DatasetError, match=rf"labels\.json: {sentence}"):
        small(images=images, annotations=[*inside, row(id=9, image_id=3, bbox=box)]).annotated("instances")


def test_boxes_without_a_size_are_refused_with_their_number_and_the_remedy(small):
    """COCO's train2017 holds a few of them."""
    rows = [row(), row(id=2, bbox=[1, 1, 2, 0]), row(id=3, bbox=[1, 1, 0, 2])]
    sentence = r"annotations\[1\] \(id 2\): `bbox` is \[1, 1, 2, 0\], not four .*\(2 such boxes in all\); remove the annotation"
    with pytest.raises(DatasetError, match=sentence):
        small(annotations=rows)


def test_panoptic_maps_are_compared_before_anything_is_coded(root, tmp_path):
    shutil.copytree(root / "panoptic_val2017", tmp_path / "maps")
    coco = Coco(
        root / "val2017", panoptic=root / "annotations/panoptic_val2017.json", panoptic_masks=tmp_path / "maps", name="coco"
    )
    assert coco.annotated("panoptic") == coco.ids
    last = tmp_path / "maps" / f"{coco.ids[-1][:-4]}.png"
    for picture, sentence in (
        (Pillow.new("RGB", (5, 5)), r"png: 5x5 pixels, but its photograph .* has \d+x\d+; give the annotations of these"),
        (Pillow.new("LA", (5, 5)), "is greyscale with alpha; convert it"),
        (None, "damaged or no PNG; download it again"),
    ):
        picture.save(last) if picture else last.write_bytes(b"\x89PNG")
        coco = Coco(root / "val2017", panoptic=root / "annotations/panoptic_val2017.json", panoptic_masks=tmp_path / "maps")
        with pytest.raises(DatasetError, match=sentence):
            coco.annotated("panoptic")


def test_what_is_no_folder_of_panoptic_maps_is_named(root, tmp_path):
    labels = root / "annotations/panoptic_val2017.json"
    with pytest.raises(DatasetError, match=r"panoptic_val2017\.json: this folder cannot be read \(Not a directory\); give the"):
        Coco(root / "val2017", panoptic=labels, panoptic_masks=labels)
    for path in (root / "panoptic_val2017").iterdir():
        (tmp_path / path.name).symlink_to(path)
    linked = Coco(root / "val2017", panoptic=labels, panoptic_masks=tmp_path)
    assert linked.annotated("panoptic") == linked.ids
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(DatasetError, match=r"1 of the 100 PNG that .*panoptic_val2017\.json names are missing, the first is"):
        Coco(root / "val2017", panoptic=labels, panoptic_masks=tmp_path)
