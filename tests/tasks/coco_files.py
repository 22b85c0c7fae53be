"""Small complete files in COCO's formats, prepared answers of models about them, and the scores that reference evaluations give.

The references are pycocotools for boxes, masks and keypoints, and for panoptic segments the rules of panopticapi, written out here.
What a file leaves out and this project takes from elsewhere (areas, sizes) is first written into the reference's copy.
"""

import contextlib
import copy
import io
import math
from collections import Counter

import numpy as np
from PIL import Image as Pillow
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.datasets.coco_columns import PERSON_JOINTS
from icmbench.tasks.detection import Detection
from icmbench.tasks.instance_segmentation import InstanceSegmentation
from icmbench.tasks.keypoints import Keypoints
from icmbench.tasks.maps import read_map
from icmbench.tasks.panoptic import PanopticSegmentation

WIDTH, HEIGHT = 64, 48
NAMES = ("cat", "dog", "zebra")
SHAPES = [  # Image, category, polygons; each a rectangle or a triangle, so that areas are known by hand.
    (1, 3, [[4, 4, 24, 4, 24, 24, 4, 24]]),
    (1, 5, [[30, 10, 60, 10, 60, 46, 30, 46], [2, 30, 12, 30, 12, 44]]),
    (2, 3, [[10, 6, 50, 6, 50, 42, 10, 42]]),
    (2, 7, [[0, 0, 8, 0, 8, 40]]),
    (3, 7, [[20.5, 10.5, 40, 10.5, 40, 30]]),
]


# The files, complete and small.


def images():
    return [{"id": k, "file_name": f"im{k}.png", "width": WIDTH, "height": HEIGHT} for k in (1, 2, 3)]


def categories():
    return [{"id": k, "name": name, "supercategory": "animal"} for k, name in zip((3, 5, 7), NAMES, strict=True)]


def run_lengths(left, top, right, bottom, compressed):
    """A rectangle as COCO's run lengths."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    if compressed:
        encoded = coco_mask.encode(mask)
        return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    flat = np.concatenate([[0], mask.ravel(order="F"), [2]])
    runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": runs}


def instances():
    annotations = []
    for number, (image, category, polygons) in enumerate(copy.deepcopy(SHAPES)):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        annotations.append(
            {"id": 11 + number, "image_id": image, "category_id": category, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | {"area": sum(map(shoelace, polygons)), "segmentation": polygons}
        )
    crowd = {"id": 16, "image_id": 3, "category_id": 3, "iscrowd": 1, "bbox": [0, 20, 20, 20], "area": 400}
    small = {"id": 17, "image_id": 3, "category_id": 5, "iscrowd": 0, "bbox": [44, 4, 16, 12], "area": 192}
    annotations.append(crowd | {"segmentation": run_lengths(0, 20, 20, 40, compressed=False)})
    annotations.append(small | {"segmentation": run_lengths(44, 4, 60, 16, compressed=True)})
    return {"info": {"year": 2026}, "images": images(), "annotations": annotations, "categories": categories()}


def keypoints():
    data = instances()
    data["categories"] = [{"id": 3, "name": "person", "keypoints": list(PERSON_JOINTS), "skeleton": [[1, 2]]}]
    for annotation in data["annotations"]:
        x, y, width, height = annotation["bbox"]
        points = [[x + width * (k % 5) / 4, y + height * (k % 4) / 3, (0, 1, 2)[k % 3]] for k in range(17)]
        visible = [point if annotation["id"] != 14 else [0, 0, 0] for point in points]
        annotation |= {"category_id": 3, "keypoints": [float(n) for point in visible for n in point]}
        annotation["num_keypoints"] = sum(point[2] > 0 for point in visible)
    return data


def captions():
    annotations = [{"id": k, "image_id": 1 + k % 3, "caption": f"caption {k}"} for k in range(7)]
    return {"images": images(), "annotations": annotations}


SEGMENTS = {1: [(700, 3, 0), (12, 5, 0), (80000, 7, 0)], 2: [(700, 3, 0), (9, 3, 0), (4, 5, 1)], 3: [(2, 7, 0), (3, 5, 0)]}


def segment_map(image):
    """Vertical stripes of the image's segments beside an unlabelled one."""
    stripes = [0, *(number for number, _, _ in SEGMENTS[image])]
    return np.repeat(stripes, -(-WIDTH // len(stripes)))[None, :WIDTH].repeat(HEIGHT, axis=0)


def panoptic():
    annotations = []
    for image, segments in SEGMENTS.items():
        labels = segment_map(image)
        infos = [
            {"id": number, "category_id": category, "iscrowd": crowd, "area": int((labels == number).sum()), "bbox": [0, 0, 1, 1]}
            for number, category, crowd in segments
        ]
        annotations.append({"image_id": image, "file_name": f"im{image}.png", "segments_info": infos})
    listed = [category | {"isthing": int(k < 2)} for k, category in enumerate(categories())]
    return {"images": images(), "annotations": annotations, "categories": listed}


FILES = {"instances": instances, "keypoints": keypoints, "panoptic": panoptic, "captions": captions}
TASKS = {"bbox": Detection, "segm": InstanceSegmentation, "keypoints": Keypoints, "panoptic": PanopticSegmentation}
KINDS = {"bbox": "instances", "segm": "instances", "keypoints": "keypoints", "panoptic": "panoptic"}


def shoelace(polygon):
    x, y = np.reshape(polygon, (-1, 2)).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def detections(kind):
    """What the model says of each file: the labels, shifted by a pixel, without crowds; the zebra of im2 is not found."""
    answers = {f"im{k}.png": {"boxes": [], "scores": [], "classes": [], "masks": [], "keypoints": []} for k in (1, 2, 3)}
    for number, annotation in enumerate((keypoints if kind == "keypoints" else instances)()["annotations"]):
        if annotation["id"] in (14, 16):
            continue
        answer = answers[f"im{annotation['image_id']}.png"]
        x, y, width, height = annotation["bbox"]
        answer["boxes"].append([x + 1, y, x + 1 + width, y + height])
        answer["scores"].append(0.9 - 0.1 * number)
        answer["classes"].append(0 if kind == "keypoints" else (3, 5, 7).index(annotation["category_id"]))
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[int(y) : int(y + height), int(x) + 1 : int(x + 1 + width)] = 1
        answer["masks"].append(dict(coco_mask.encode(mask)))
        if kind == "keypoints":
            answer["keypoints"].append(np.reshape(annotation["keypoints"], (17, 3)) + np.array([1, 0, 0]))
    for answer in answers.values():
        n = len(answer["scores"])
        answer["boxes"] = np.array(answer["boxes"], np.float32).reshape(n, 4)
        answer["scores"], answer["classes"] = np.array(answer["scores"], np.float32), np.array(answer["classes"], np.int64)
        answer["keypoints"] = np.array(answer["keypoints"], np.float32).reshape(-1, 17, 3)
    return answers


def segments(name):
    """What the model says of a picture: its segments, moved by two pixels, and one of them in another class."""
    image = int(name[2])
    listed = SEGMENTS[image]
    classes = [(3, 5, 7).index(category) for _, category, _ in listed]
    classes[-1] = 2 if image == 1 else 0
    ids = [number for number, _, _ in listed]
    return {"segments": np.roll(segment_map(image), 2, axis=1).astype(np.int32), "segment_ids": ids, "classes": classes}


class Answers:
    """A model with prepared answers by file name."""

    fingerprint, is_thing = "answers", np.array([True, True, False])

    def __init__(self, kind, names):
        self.names, self.categories = names, ["person"] if kind == "keypoints" else list(NAMES)
        self.answers = None if kind == "panoptic" else detections(kind)

    def __call__(self, pictures):
        return [segments(name) if self.answers is None else self.answers[name] for name in self.names]


def write_pictures(folder):
    """The photographs and the panoptic PNG, into a folder that is returned."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for k in (1, 2, 3):
        Pillow.new("RGB", (WIDTH, HEIGHT), (k * 40, 90, 10)).save(folder / "images" / f"im{k}.png")
        save_map(folder / "masks" / f"im{k}.png", segment_map(k))
    return folder


def save_map(path, labels):
    rgb = np.stack([labels >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    Pillow.fromarray(rgb).save(path)


def opened(root, kind, text):
    file = root / f"{kind}.json"
    file.write_text(text)
    masks = {"panoptic_masks": root / "masks"} if kind == "panoptic" else {}
    return Coco(root / "images", **{kind: file}, **masks)


def scores(root, kind, text):
    """The task's scores, or None if the annotations are refused before anything is coded."""
    try:
        dataset = opened(root, KINDS[kind], text)
        model = Answers(kind, dataset.annotated(KINDS[kind]))
        task = TASKS[kind](dataset, model)
        pictures = [dataset.read(name) for name in task.ids]
    except DatasetError as error:
        assert str(root) in str(error) or "no name in common" in str(error) or "the model has no category" in str(error), error
        return None
    predictions = task.predict(pictures, task.ids)
    return task.aggregate(task.statistics(predictions, task.targets(task.ids)))


# The references.


def completed(data, kind):
    """A copy with everything that may be left out written down, and ids from 1: COCOeval takes a match with id 0 for none."""
    data = copy.deepcopy(data)
    for image in data["images"]:
        image |= {"width": WIDTH, "height": HEIGHT}
    for annotation in data["annotations"]:
        annotation["id"] += 1000
        annotation["bbox"] = list(map(float, annotation["bbox"]))
        annotation["iscrowd"] = annotation.get("iscrowd") or 0
        shape = annotation.get("segmentation")
        if isinstance(shape, list):
            annotation["segmentation"] = shape = [
                polygon for polygon in shape if not isinstance(polygon, list) or len(polygon) >= 6
            ]
        if annotation.get("area") is None:
            annotation["area"] = area_of(annotation, shape)
        if kind == "keypoints":
            annotation["keypoints"] = list(map(float, annotation["keypoints"]))  # COCOeval fails on integers of over 64 bits.
            annotation["num_keypoints"] = sum(number > 0 for number in annotation["keypoints"][2::3])
    return data


def area_of(annotation, shape):
    if not shape:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(shape, list):
        return sum(map(shoelace, shape))
    encoded = coco_mask.frPyObjects(shape, HEIGHT, WIDTH) if isinstance(shape["counts"], list) else shape
    return float(coco_mask.area(encoded))


def cocoeval(data, kind):
    """COCOeval's AP in percent with NaN for its -1, of the prepared answers on a file."""
    data = completed(data, kind)
    by_name = {" ".join(category["name"].casefold().replace("_", " ").split()): category["id"] for category in data["categories"]}
    model, rows = Answers(kind, []), []
    for image in {image["id"]: image for image in data["images"]}.values():
        answer = model.answers[image["file_name"]]
        for k, (score, index) in enumerate(zip(answer["scores"], answer["classes"], strict=True)):
            if model.categories[index] in by_name:
                row = {"image_id": image["id"], "category_id": by_name[model.categories[index]], "score": float(score)}
                x1, y1, x2, y2 = map(float, answer["boxes"][k])
                if kind == "bbox":
                    row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                elif kind == "segm":
                    row["segmentation"] = dict(answer["masks"][k])
                else:
                    row["keypoints"] = answer["keypoints"][k].astype(float).ravel().tolist()
                rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset = data
        truth.createIndex()
        found.dataset = {"images": data["images"], "annotations": [], "categories": data["categories"]}
        found.createIndex()
        run = COCOeval(truth, truth.loadRes(rows) if rows else found, kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float("nan") if value == -1 else 100 * value for value in run.stats[: 5 if kind == "keypoints" else 6]]


def panopticapi(root, data):
    """PQ, SQ and RQ of all, PQ of things and of stuff, as panopticapi's `pq_compute_single_core` counts, with the JSON's areas."""
    numbers = {" ".join(category["name"].casefold().split()): category["id"] for category in data["categories"]}
    names = {image["id"]: image["file_name"] for image in data["images"]}
    tally = {category["id"]: np.zeros(4) for category in data["categories"]}
    for annotation in data["annotations"]:
        truth = read_map(root / "masks" / annotation["file_name"])
        answer = segments(names[annotation["image_id"]])
        listed = {info["id"]: info for info in annotation["segments_info"]}
        predicted = {i: numbers.get(NAMES[c]) for i, c in zip(answer["segment_ids"], answer["classes"], strict=True)}
        shared = Counter(zip(truth.ravel().tolist(), answer["segments"].ravel().tolist(), strict=True))
        area = Counter(answer["segments"].ravel().tolist())
        matched = set()
        for (i, j), common in shared.items():
            if i in listed and j in predicted and not listed[i].get("iscrowd") and listed[i]["category_id"] == predicted[j]:
                stated = listed[i].get("area")
                stated = (truth == i).sum() if stated is None else stated
                iou = common / (area[j] + stated - common - shared[0, j])
                if iou > 0.5:
                    tally[predicted[j]] += [iou, 1, 0, 0]
                    matched |= {("truth", i), ("found", j)}
        crowds = {}
        for i, info in listed.items():
            if ("truth", i) not in matched:
                if info.get("iscrowd"):
                    crowds[info["category_id"]] = i
                else:
                    tally[info["category_id"]][3] += 1
        for j, category in predicted.items():
            excused = shared[0, j] + (shared[crowds[category], j] if category in crowds else 0)
            if ("found", j) not in matched and category is not None and excused / area[j] <= 0.5:
                tally[category][2] += 1
    quality = {}
    for category in data["categories"]:
        iou, tp, fp, fn = tally[category["id"]]
        if tp + fp + fn:
            total = tp + fp / 2 + fn / 2
            quality[category["id"]] = (iou / total, iou / tp if tp else 0, tp / total, bool(category["isthing"]))
    means = [100 * float(np.mean([row[k] for row in quality.values()])) if quality else math.nan for k in range(3)]
    for thing in (True, False):
        kept = [row[0] for row in quality.values() if row[3] == thing]
        means.append(100 * float(np.mean(kept)) if kept else math.nan)
    return means
