"""The adapters for detectron2 against detectron2's own DefaultPredictor, on the same random weights."""

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
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x"
SETTINGS = {  # Small images and no thresholds, so that random weights detect something quickly.
    "INPUT.MIN_SIZE_TEST": 160,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 64,
}


def small_config(zoo: str) -> Any:
    import detectron2

    config = get_cfg()
    config.merge_from_file(str(Path(detectron2.__file__).parent / f"model_zoo/configs/{zoo}.yaml"))
    config.merge_from_list([part for pair in SETTINGS.items() for part in pair])
    config.MODEL.DEVICE = "cpu"
    return config


def save_random_weights(zoo: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = build_model(small_config(zoo))
    with torch.no_grad():
        # Frozen norms do not normalise, so the signal of a random network would explode. A variance of 4 halves it at each norm.
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.fill_(4.0)
        if zoo == PANOPTIC:
            network.sem_seg_head.predictor.weight.mul_(30)
    path = folder / "weights.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


def predictor(zoo: str, path: Path) -> DefaultPredictor:
    config = small_config(zoo)
    config.MODEL.WEIGHTS = str(path)
    return DefaultPredictor(config)


@pytest.mark.parametrize("zoo", [BOXES, MASKS, KEYPOINTS])
def test_instances_equal_the_predictors(zoo: str, tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(zoo, tmp_path)
    model, reference = Detectron2Instances(zoo, path=path, settings=SETTINGS, batch_size=1), predictor(zoo, path)
    for photo, output in zip(photos[:2], model(photos[:2]), strict=True):
        expected = reference(photo[:, :, ::-1])["instances"]
        assert len(expected) == 20
        np.testing.assert_array_equal(output["boxes"], expected.pred_boxes.tensor.numpy())
        np.testing.assert_array_equal(output["scores"], expected.scores.numpy())
        np.testing.assert_array_equal(output["classes"], expected.pred_classes.numpy())
        if zoo == MASKS:
            np.testing.assert_array_equal(coco_mask.decode(output["masks"]).transpose(2, 0, 1), expected.pred_masks.numpy())
        if zoo == KEYPOINTS:
            from detectron2.evaluation.coco_evaluation import instances_to_coco_json

            expected_keypoints = [instance["keypoints"] for instance in instances_to_coco_json(expected, 0)]
            np.testing.assert_allclose(output["keypoints"].reshape(-1, 51), expected_keypoints, atol=1e-4)
    names = model.categories
    assert names == ["person"] if zoo == KEYPOINTS else (names[0], names[79], len(names)) == ("person", "toothbrush", 80)


def test_panoptic_segments_equal_the_predictors(tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(PANOPTIC, tmp_path)
    model, reference = Detectron2Panoptic(PANOPTIC, path=path, settings=SETTINGS, batch_size=1), predictor(PANOPTIC, path)
    thing_or_stuff = set()
    for photo, output in zip(photos[:2], model(photos[:2]), strict=True):
        segment_map, descriptions = reference(photo[:, :, ::-1])["panoptic_seg"]
        np.testing.assert_array_equal(output["segments"], segment_map.numpy())
        assert output["segments"].dtype == np.int32 and output["segments"].shape == photo.shape[:2]
        for segment_id, class_index, segment in zip(output["segment_ids"], output["classes"], descriptions, strict=True):
            assert segment_id == segment["id"] and model.is_thing[class_index] == segment["isthing"]
            names = model.metadata.thing_classes if segment["isthing"] else model.metadata.stuff_classes
            assert model.categories[class_index].startswith(names[segment["category_id"]])
            thing_or_stuff.add(segment["isthing"])
    assert thing_or_stuff == {True, False}, "both kinds of segments were compared"


def test_panoptic_categories_are_named_as_in_the_dataset(shared: Path, tmp_path: Path) -> None:
    import json

    categories = json.loads((shared / "data/coco/annotations/panoptic_val2017.json").read_text())["categories"]
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    model = Detectron2Panoptic(PANOPTIC, path=path)
    is_thing = dict(zip(model.categories, model.is_thing, strict=True))
    is_thing.pop("things", None)  # detectron2's semantic head has this additional class for the pixels of all things.
    assert is_thing == {category["name"]: bool(category["isthing"]) for category in categories}


def test_a_batch_of_mixed_shapes_equals_single_images(tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(BOXES, tmp_path)
    singles, batched = (Detectron2Instances(BOXES, path=path, settings=SETTINGS, batch_size=size)(photos) for size in (1, 4))
    for single, batch_member in zip(singles, batched, strict=True):
        np.testing.assert_allclose(single["scores"], batch_member["scores"], atol=1e-4)


def test_the_task_follows_the_heads() -> None:
    assert Detectron2Instances(BOXES).task == ("detection",)
    assert Detectron2Instances(MASKS).task == ("detection", "instance_segmentation")
    assert Detectron2Instances(KEYPOINTS).task == ("keypoints",)
    with pytest.raises(ModelError, match="GeneralizedRCNN gives no panoptic segmentation"):
        Detectron2Panoptic(MASKS)


def test_the_zoos_pickle_files_are_read_without_running_code(tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(BOXES, tmp_path)
    arrays = {name: value.numpy() for name, value in torch.load(path, weights_only=True)["model"].items()}
    zoo_file = tmp_path / "model_final.pkl"
    zoo_file.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    from_pickle, from_torch = (Detectron2Instances(BOXES, path=file, settings=SETTINGS)(photos[:1])[0] for file in (zoo_file, path))
    np.testing.assert_array_equal(from_pickle["boxes"], from_torch["boxes"])

    class PrintsWhenLoaded:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    buffer = io.BytesIO()
    pickle.dump({"model": {"x": PrintsWhenLoaded()}}, buffer)
    zoo_file.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match=r"model_final\.pkl: .*it holds builtins\.print, which is no array"):
        read_state(zoo_file)
    zoo_file.write_bytes(b"garbage")
    with pytest.raises(ModelError, match=r"model_final\.pkl: this is no checkpoint of detectron2"):
        read_state(zoo_file)


def test_wrong_names_and_files_are_reported_in_one_sentence(tmp_path: Path, photos: Any) -> None:
    with pytest.raises(ModelError, match="give either `zoo`"):
        Detectron2Instances()
    with pytest.raises(
        ModelError, match=r"zoo: detectron2 has no configuration COCO-Detection/nothing\.yaml; known: .*faster_rcnn_R_50"
    ):
        Detectron2Instances("COCO-Detection/nothing")
    with pytest.raises(ModelError, match=r"settings: .*MODEL\.NOTHING"):
        Detectron2Instances(BOXES, settings={"MODEL.NOTHING": 1})
    state = torch.load(save_random_weights(BOXES, tmp_path), weights_only=True)["model"]
    incomplete = tmp_path / "incomplete.pth"
    torch.save({name: value for name, value in state.items() if "box_predictor" not in name}, incomplete)
    with pytest.raises(ModelError, match=r"incomplete\.pth: 4 weights are not in this checkpoint, such as roi_heads\.box_pred"):
        Detectron2Instances(BOXES, path=incomplete)(photos[:1])
    with pytest.raises(ModelError, match="no weights of this configuration"):
        Detectron2Instances(KEYPOINTS, path=tmp_path / "weights.pth")(photos[:1])


def test_the_fingerprint_holds_what_decides_the_output_and_loads_no_network(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    model = Detectron2Instances(BOXES, path=path)
    assert model.fingerprint == Detectron2Instances(BOXES, path=path, batch_size=1).fingerprint
    assert model.fingerprint != Detectron2Instances(BOXES, path=path, settings={"INPUT.MIN_SIZE_TEST": 640}).fingerprint
    assert "137849458/model_final_280758.pkl" in Detectron2Instances(BOXES).fingerprint
    assert "network" not in vars(model)
