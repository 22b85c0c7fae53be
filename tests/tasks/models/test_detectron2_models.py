"""detectron2's adapter against its own DefaultPredictor, on the same random weights."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.engine import DefaultPredictor  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402

from icmbench.tasks.models.detectron2_models import Detectron2Instances, Detectron2Panoptic, read_state  # noqa: E402
from icmbench.tasks.models.errors import ModelError  # noqa: E402

BOXES = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
MASKS = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
POINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x"
SMALL = {
    "INPUT.MIN_SIZE_TEST": 160,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 64,
}


def configured(zoo: str) -> Any:
    import detectron2

    config = get_cfg()
    config.merge_from_file(str(Path(detectron2.__file__).parent / f"model_zoo/configs/{zoo}.yaml"))
    config.merge_from_list([part for pair in SMALL.items() for part in pair])
    config.MODEL.DEVICE = "cpu"
    return config


def random_weights(zoo: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = build_model(configured(zoo))
    with torch.no_grad():  # frozen norms of a random network would let its signal explode
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.fill_(4.0)
        if zoo == PANOPTIC:
            network.sem_seg_head.predictor.weight.mul_(30)
    path = folder / "weights.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


def predictor(zoo: str, path: Path) -> DefaultPredictor:
    config = configured(zoo)
    config.MODEL.WEIGHTS = str(path)
    return DefaultPredictor(config)


@pytest.mark.parametrize("zoo", [BOXES, MASKS, POINTS])
def test_instances_equal_the_predictor(zoo: str, tmp_path: Path, photos: Any) -> None:
    path = random_weights(zoo, tmp_path)
    model, expected_by = Detectron2Instances(zoo, path=path, settings=SMALL, batch_size=1), predictor(zoo, path)
    for photo, found in zip(photos[:2], model(photos[:2]), strict=True):
        expected = expected_by(photo[:, :, ::-1])["instances"]
        assert len(expected) == 20
        np.testing.assert_array_equal(found["boxes"], expected.pred_boxes.tensor.numpy())
        np.testing.assert_array_equal(found["scores"], expected.scores.numpy())
        np.testing.assert_array_equal(found["classes"], expected.pred_classes.numpy())
        if zoo == MASKS:
            np.testing.assert_array_equal(coco_mask.decode(found["masks"]).transpose(2, 0, 1), expected.pred_masks.numpy())
        if zoo == POINTS:
            from detectron2.evaluation.coco_evaluation import instances_to_coco_json

            written = [one["keypoints"] for one in instances_to_coco_json(expected, 0)]
            np.testing.assert_allclose(found["keypoints"].reshape(-1, 51), written, atol=1e-4)
    names = model.categories
    assert names == ["person"] if zoo == POINTS else (names[0], names[79], len(names)) == ("person", "toothbrush", 80)


def test_panoptic_equals_the_predictor(tmp_path: Path, photos: Any) -> None:
    path = random_weights(PANOPTIC, tmp_path)
    model, expected_by = Detectron2Panoptic(PANOPTIC, path=path, settings=SMALL, batch_size=1), predictor(PANOPTIC, path)
    kinds = set()
    for photo, found in zip(photos[:2], model(photos[:2]), strict=True):
        segments, about = expected_by(photo[:, :, ::-1])["panoptic_seg"]
        np.testing.assert_array_equal(found["segments"], segments.numpy())
        assert found["segments"].dtype == np.int32 and found["segments"].shape == photo.shape[:2]
        for number, label, one in zip(found["segment_ids"], found["classes"], about, strict=True):
            assert number == one["id"] and model.is_thing[label] == one["isthing"]
            shared = model.metadata.thing_classes if one["isthing"] else model.metadata.stuff_classes
            assert model.categories[label].startswith(shared[one["category_id"]])
            kinds.add(one["isthing"])
    assert kinds == {True, False}


def test_panoptic_names_are_the_datasets(shared: Path, tmp_path: Path) -> None:
    import json

    listed = json.loads((shared / "data/coco/annotations/panoptic_val2017.json").read_text())["categories"]
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    model = Detectron2Panoptic(PANOPTIC, path=path)
    kinds = dict(zip(model.categories, model.is_thing, strict=True))
    assert {one["name"]: bool(one["isthing"]) for one in listed} == {k: v for k, v in kinds.items() if k != "things"}


def test_a_batch_of_mixed_shapes(tmp_path: Path, photos: Any) -> None:
    path = random_weights(BOXES, tmp_path)
    alone, together = (Detectron2Instances(BOXES, path=path, settings=SMALL, batch_size=size)(photos) for size in (1, 4))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_the_task_follows_the_heads(tmp_path: Path) -> None:
    assert Detectron2Instances(BOXES).task == ("detection",)
    assert Detectron2Instances(MASKS).task == ("detection", "instance_segmentation")
    assert Detectron2Instances(POINTS).task == ("keypoints",)
    with pytest.raises(ModelError, match="GeneralizedRCNN gives no panoptic segmentation"):
        Detectron2Panoptic(MASKS)


def test_the_zoos_pickled_files_are_read_without_running_code(tmp_path: Path, photos: Any) -> None:
    path = random_weights(BOXES, tmp_path)
    arrays = {name: value.numpy() for name, value in torch.load(path, weights_only=True)["model"].items()}
    zoo_file = tmp_path / "model_final.pkl"
    zoo_file.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    by_pickle, by_torch = (Detectron2Instances(BOXES, path=file, settings=SMALL)(photos[:1])[0] for file in (zoo_file, path))
    np.testing.assert_array_equal(by_pickle["boxes"], by_torch["boxes"])

    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    buffer = io.BytesIO()
    pickle.dump({"model": {"x": Bomb()}}, buffer)
    zoo_file.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=r"model_final\.pkl: .*it holds builtins\.print, which is no array"):
        read_state(zoo_file)
    zoo_file.write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"model_final\.pkl: this is no checkpoint of detectron2"):
        read_state(zoo_file)


def test_wrong_names_and_files_are_one_sentence(tmp_path: Path, photos: Any) -> None:
    with pytest.raises(ModelError, match="give either `zoo`"):
        Detectron2Instances()
    with pytest.raises(
        ModelError, match=r"zoo: detectron2 has no configuration COCO-Detection/nothing\.yaml; known: .*faster_rcnn_R_50"
    ):
        Detectron2Instances("COCO-Detection/nothing")
    with pytest.raises(ModelError, match=r"settings: .*MODEL\.NOTHING"):
        Detectron2Instances(BOXES, settings={"MODEL.NOTHING": 1})
    state = torch.load(random_weights(BOXES, tmp_path), weights_only=True)["model"]
    short = tmp_path / "short.pth"
    torch.save({k: v for k, v in state.items() if "box_predictor" not in k}, short)
    with pytest.raises(ModelError, match=r"short\.pth: 4 weights are not in this checkpoint, such as roi_heads\.box_predictor"):
        Detectron2Instances(BOXES, path=short)(photos[:1])
    with pytest.raises(ModelError, match="no weights of this configuration"):
        Detectron2Instances(POINTS, path=tmp_path / "weights.pth")(photos[:1])


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    plain = Detectron2Instances(BOXES, path=path)
    assert plain.fingerprint == Detectron2Instances(BOXES, path=path, batch_size=1).fingerprint
    assert plain.fingerprint != Detectron2Instances(BOXES, path=path, settings={"INPUT.MIN_SIZE_TEST": 640}).fingerprint
    assert "137849458/model_final_280758.pkl" in Detectron2Instances(BOXES).fingerprint
    assert "network" not in vars(plain)
