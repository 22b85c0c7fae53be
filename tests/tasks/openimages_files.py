"""Small complete tables of Open Images with their photographs, and a model that repeats prepared detections."""

import base64
import zlib

import numpy as np
from PIL import Image as Pillow
from pycocotools.mask import encode

from icmbench.tasks.datasets.openimages import OpenImages

WIDTH, HEIGHT = 80, 40
IDS = ("00000000000000a1", "00000000000000b2", "00000000000000c3")
BOX_HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
MASK_HEADER = "ImageID,LabelName,ImageWidth,ImageHeight,XMin,YMin,XMax,YMax,IsGroupOf,Mask,MaskPath"
BOXES = [
    (IDS[0], "cat", 0, 0.5, 0, 1, 0),
    (IDS[0], "cell_phone", 0.25, 1, 0.1, 0.5, 0),
    (IDS[1], "cat", 0.1234567, 0.7654321, 0.25, 0.75, 1),
]
LABELS = [(IDS[0], "cat", 1), (IDS[0], "cell_phone", 1), (IDS[1], "cat", 1), (IDS[1], "cat", 0), (IDS[2], "dog", 0)]


def table(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def packed(pixels):
    """A mask, bool (height, width), as MPEG's tables hold it."""
    counts = encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"]
    return base64.b64encode(zlib.compress(counts)).decode()


def rectangle(x1, y1, x2, y2, size=(HEIGHT, WIDTH)):
    """A mask, bool (height, width), of a rectangle in pixels."""
    pixels = np.zeros(size, bool)
    pixels[y1:y2, x1:x2] = True
    return pixels


def write_photographs(folder, ids=IDS, suffix=".png"):
    (folder / "photographs").mkdir(exist_ok=True)
    for image_id in ids:
        Pillow.new("RGB", (WIDTH, HEIGHT)).save(folder / "photographs" / f"{image_id}{suffix}")


def open_tables(folder, boxes=BOXES, labels=LABELS, masks=None, **options):
    """A dataset of these rows; `masks` are pairs of a row of `boxes` and the pixels of its mask."""
    if not (folder / "photographs").exists():
        write_photographs(folder)
    if masks is not None:
        rows = []
        for number, (box, pixels) in enumerate(masks):
            image_id, name, x1, x2, y1, y2, group = boxes[box]
            corners = (f"{edge:.6f}" for edge in (x1, y1, x2, y2))
            rows.append((image_id, name, WIDTH, HEIGHT, *corners, group, packed(pixels), f"mask{number}.png"))
        options["masks"] = table(folder / "masks.csv", MASK_HEADER, rows)
    return OpenImages(
        folder / "photographs",
        table(folder / "boxes.csv", BOX_HEADER, boxes),
        table(folder / "labels.csv", "ImageID,LabelName,Confidence", labels),
        **options,
    )


class Repeater:
    """A model that finds prepared objects: in each image (class, score, x1, x2), as high as the image, or (class, score, mask)."""

    task = ("detection", "instance_segmentation", "keypoints")
    fingerprint = "repeater"
    categories = ("cat", "dog", "cell phone", "toaster")

    def __init__(self, *images):
        self.images = images

    def __call__(self, pixels):
        return [self._output(objects) for objects in self.images]

    def _output(self, objects):
        masks = [each[2] if len(each) == 3 else rectangle(each[2], 0, each[3], HEIGHT) for each in objects]
        boxes = [[each[2], 0, each[3], HEIGHT] if len(each) == 4 else [0, 0, 1, 1] for each in objects]
        return {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "scores": np.array([each[1] for each in objects], np.float32),
            "classes": np.array([self.categories.index(each[0]) for each in objects], np.int64),
            "masks": [encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks],
        }


def entries(task):
    """What the task makes of its model's detections on all of its images."""
    pixels = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * len(task.ids)
    return task.statistics(task.predict(pixels, task.ids), task.targets(task.ids))
