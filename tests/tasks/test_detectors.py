"""YOLOX and SSD-MobileNetV2 on real photographs."""

import io

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools.mask import iou

from icmbench.tasks.datasets.coco import Coco
from icmbench.tasks.detection import Detection, xywh
from icmbench.tasks.models.coco_names import COCO
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.ssd_mobilenet import SsdMobileNet
from icmbench.tasks.models.yolox_onnx import YoloxOnnx, decode, letterbox, suppress


@pytest.fixture(scope="module")
def root(shared):
    return shared / "data" / "coco"


@pytest.fixture(scope="module")
def yolox(shared):
    return YoloxOnnx(shared / "models" / "yolox_nano.onnx")


def coco(root, limit=None):
    return Coco(root / "val2017", instances=root / "annotations" / "instances_val2017.json", limit=limit)


@pytest.mark.parametrize(("quality", "ap"), [(10, 24.24)])
def test_yolox_nano_on_79_jpegs(root, yolox, quality, ap):
    task = Detection(coco(root), yolox)
    predictions = []
    for image_id in task.ids:
        buffer = io.BytesIO()
        Pillow.fromarray(task.dataset.read(image_id)).save(buffer, "JPEG", quality=quality)
        predictions += task.predict([np.asarray(Pillow.open(buffer))], [image_id])
    assert task.aggregate(task.statistics(predictions, task.targets(task.ids)))["AP"] == pytest.approx(ap, abs=0.05)


def test_ssd_finds_what_is_labelled(root):
    task = Detection(coco(root, limit=12), SsdMobileNet())
    hits = []
    for image_id, target in zip(task.ids, task.targets(task.ids)):
        (prediction,) = task.predict([task.dataset.read(image_id)], [image_id])
        assert len(prediction["scores"]) <= 100 and (prediction["scores"] > 0.01).all()
        best = int(np.argmax(prediction["scores"]))
        same = target["classes"] == prediction["classes"][best]
        overlaps = iou(xywh(prediction["boxes"])[best : best + 1], target["boxes"][same], np.zeros(same.sum()))
        hits.append(len(overlaps) > 0 and np.max(overlaps) > 0.5)
    assert np.mean(hits) >= 0.75


@pytest.mark.parametrize("name", ["yolox", "ssd"])
def test_results_do_not_depend_on_the_batch(root, yolox, name):
    model = yolox if name == "yolox" else SsdMobileNet()
    dataset = coco(root, limit=3)
    images = [*map(dataset.read, dataset.ids), np.zeros((1, 1, 3), np.uint8), np.zeros((3, 700, 3), np.uint8)]
    together = model(images)
    for image, output in zip(images, together):
        (alone,) = model([image])
        assert output["boxes"].dtype == output["scores"].dtype == np.float32 and output["classes"].dtype == np.int64
        assert output["boxes"].shape == (len(output["scores"]), 4)
        for key, values in output.items():
            np.testing.assert_array_equal(values, alone[key])
    assert model.categories == list(COCO.values()) and len(COCO) == 80
    assert '"score_threshold":0.01' in model.fingerprint


def test_categories_are_those_of_coco(root):
    dataset = coco(root, limit=1)
    assert dataset.categories("instances") == list(COCO.values())


def test_letterbox_keeps_the_ratio_and_pads_right_and_below():
    image = np.zeros((100, 200, 3), np.uint8)
    image[..., 0] = 255  # Red.
    pixels, scale = letterbox(image, 416, 416)
    assert pixels.shape == (1, 3, 416, 416) and pixels.dtype == np.float32 and scale == 2.08
    assert (pixels[0, :, :208] == np.array([0, 0, 255])[:, None, None]).all()  # The network takes BGR.
    assert (pixels[0, :, 208:] == 114).all()


def test_decoding_places_boxes_on_their_cells():
    raw = np.zeros((21, 7), np.float32)  # An input of 32x32 has 4x4, 2x2 and 1 cells.
    raw[5, :4] = [0.5, 0.25, 0, np.log(2)]  # The cell in the second row and column of stride 8.
    raw[20, 4:] = [0.5, 0.25, 1]
    boxes, scores = decode(raw, 32, 32)
    np.testing.assert_allclose(boxes[5], [12 - 4, 10 - 8, 12 + 4, 10 + 8])
    np.testing.assert_allclose(boxes[20], [-16, -16, 16, 16])
    np.testing.assert_allclose(scores[20], [0.125, 0.5])


def test_suppression_equals_opencvs():
    from cv2 import dnn

    random = np.random.default_rng(0)
    for n in (0, 1, 400):
        corners = random.random((n, 2)).astype(np.float32) * 60
        boxes = np.concatenate([corners, corners + 5 + 20 * random.random((n, 2)).astype(np.float32)], axis=1)
        scores, classes = random.permutation(n).astype(np.float32) + 1, random.integers(0, 3, n)
        expected = dnn.NMSBoxesBatched(xywh(boxes).tolist(), scores.tolist(), classes.tolist(), 0.5, 0.45) if n else []
        assert sorted(suppress(boxes, scores, classes, 0.45)) == sorted(expected)


def test_files_that_are_no_yolox_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"none\.onnx: no such ONNX file"):
        YoloxOnnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"bad\.onnx: onnxruntime cannot load it"):
        YoloxOnnx(tmp_path / "bad.onnx")([np.zeros((8, 8, 3), np.uint8)])


def test_boxes_are_drawn(root, yolox):
    task = Detection(coco(root, limit=1), yolox)
    image = task.dataset.read(task.ids[0])
    drawn = task.draw(image, {"boxes": np.array([20, 30, 90, 80.0]), "scores": np.array([0.9]), "classes": np.array([3])})
    assert drawn.shape == image.shape and (drawn != image).any()
    assert (drawn[95:, 150:] == image[95:, 150:]).all()
    unsure = task.draw(image, {"boxes": np.array([20, 30, 90, 80.0]), "scores": np.array([0.1]), "classes": np.array([3])})
    np.testing.assert_array_equal(unsure, image)
