"""The adapters for torchvision against torchvision's own builders and transforms, on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from PIL import Image  # noqa: E402
from pycocotools import mask as coco_mask  # noqa: E402
from torchvision.models import get_model, get_model_weights  # noqa: E402

from icmbench.tasks.models.batches import by_shape  # noqa: E402
from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.torchvision_models import (  # noqa: E402
    TorchvisionClassifier,
    TorchvisionDetector,
    TorchvisionSemantic,
)

SMALL_INPUT = {"min_size": 128, "max_size": 160}


def save_random_weights(architecture: str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = get_model(architecture, weights=None, weights_backbone=None)
    with torch.no_grad():  # With their initial variances of 1, the norms would be close to the identity.
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    path = folder / f"{architecture}.pth"
    torch.save(network.state_dict(), path)
    return path


def build_reference(architecture: str, path: Path, **options: Any) -> Any:
    """Network and transform of the default weight set as torchvision builds them, with the file at `path` as its download."""
    entry = get_model_weights(architecture).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/")[-1]
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_bytes(path.read_bytes())
    return get_model(architecture, weights=entry, **options).eval(), entry.transforms()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Path]:
    """A temporary folder that holds torchvision's download cache, so that its own loading runs without a network."""
    user_cache = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path
    torch.hub.set_dir(user_cache)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {}),
        ("maskrcnn_resnet50_fpn", {**SMALL_INPUT, "box_detections_per_img": 20}),
        ("keypointrcnn_resnet50_fpn", {**SMALL_INPUT, "box_detections_per_img": 20}),
        ("ssdlite320_mobilenet_v3_large", {}),
    ],
)
def test_detections_equal_torchvisions(architecture: str, settings: dict[str, int], hub: Path, photos: Any) -> None:
    path = save_random_weights(architecture, hub)
    network, transform = build_reference(architecture, path, **settings)
    getattr(network, "roi_heads", network).score_thresh = 0.0
    model = TorchvisionDetector(architecture, path=path, score_threshold=0.0, settings=settings, batch_size=1)
    for photo, output in zip(photos[1:3], model(photos[1:3]), strict=True):
        with torch.inference_mode():
            expected = {name: values.numpy() for name, values in network([transform(Image.fromarray(photo))])[0].items()}
        assert len(output["scores"]) >= 10
        np.testing.assert_array_equal(output["boxes"], expected["boxes"])
        np.testing.assert_array_equal(output["scores"], expected["scores"])
        np.testing.assert_array_equal(output["classes"], expected["labels"])
        assert output["classes"].max() < len(model.categories)
        assert (output["boxes"] >= 0).all() and (output["boxes"] <= [640, 427, 640, 427]).all()
        if "masks" in expected:
            masks = coco_mask.decode(output["masks"]).transpose(2, 0, 1)
            np.testing.assert_array_equal(masks, expected["masks"][:, 0] > 0.5)
        if "keypoints" in expected:
            assert output["keypoints"].shape == (len(output["scores"]), 17, 3)
            np.testing.assert_array_equal(output["keypoints"][..., :2], expected["keypoints"][..., :2])
            np.testing.assert_array_equal(output["keypoints"][..., 2], expected["keypoints_scores"])


def test_the_task_follows_the_architecture() -> None:
    assert TorchvisionDetector("maskrcnn_resnet50_fpn_v2").task == ("detection", "instance_segmentation")
    assert TorchvisionDetector("keypointrcnn_resnet50_fpn").task == ("keypoints",)
    assert TorchvisionDetector("retinanet_resnet50_fpn").task == ("detection",)


@pytest.mark.parametrize("architecture", ["maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_an_output_without_detections_is_well_formed(architecture: str, hub: Path, photos: Any) -> None:
    path = save_random_weights(architecture, hub)
    model = TorchvisionDetector(architecture, path=path, score_threshold=1.0, settings=SMALL_INPUT)
    (output,) = model(photos[:1])
    assert output["boxes"].shape == (0, 4) and output["classes"].dtype == np.int64
    assert output.get("masks", []) == []
    assert output.get("keypoints", np.zeros((0, 17, 3))).shape == (0, 17, 3)


@pytest.mark.parametrize("architecture", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_label_maps_equal_torchvisions(architecture: str, hub: Path, photos: Any) -> None:
    auxiliary = {} if architecture.startswith("lraspp") else {"aux_loss": True}
    torch.manual_seed(0)
    transform = get_model_weights(architecture).DEFAULT.transforms()
    untrained = get_model(architecture, weights=None, weights_backbone=None, **auxiliary).train()
    for module in untrained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    # The norms take their statistics from two photographs. Otherwise the signal would fade and one class would win everywhere.
    with torch.no_grad():
        untrained(torch.stack([transform(Image.fromarray(photo)) for photo in (photos[1], photos[4])]))
    path = hub / "weights.pth"
    torch.save(untrained.state_dict(), path)
    network, transform = build_reference(architecture, path)

    label_maps = TorchvisionSemantic(architecture, path=path, batch_size=1)(photos[1:3])
    for photo, labels in zip(photos[1:3], label_maps, strict=True):
        with torch.inference_mode():
            logits = network(transform(Image.fromarray(photo))[None])["out"]
        upsampled = torch.nn.functional.interpolate(logits, photo.shape[:2], mode="bilinear", align_corners=False)
        assert labels.shape == photo.shape[:2] and labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, upsampled.argmax(1)[0].numpy())
    assert len(np.unique(label_maps[0])) > 3


@pytest.mark.parametrize("architecture", ["resnet50", "convnext_tiny"])
def test_logits_equal_torchvisions(architecture: str, hub: Path, photos: Any) -> None:
    path = hub / "weights.pth"
    torch.manual_seed(0)
    torch.save(get_model(architecture, weights=None).state_dict(), path)
    network, transform = build_reference(architecture, path)
    model = TorchvisionClassifier(architecture, path=path, batch_size=2)
    scores = model(photos)
    with torch.inference_mode():
        expected = torch.cat([network(transform(Image.fromarray(photo))[None]) for photo in photos]).numpy()
    assert scores.shape == (5, 1000) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())
    assert model.categories[:2] == ["tench", "goldfish"]


def test_the_weight_set_decides_the_preprocessing(hub: Path, photos: Any) -> None:
    path = hub / "weights.pth"
    torch.manual_seed(0)
    torch.save(get_model("resnet50", weights=None).state_dict(), path)
    first, second = (TorchvisionClassifier("resnet50", weights=name, path=path) for name in ("IMAGENET1K_V1", "IMAGENET1K_V2"))
    assert first.entry.transforms().resize_size == [256] and second.entry.transforms().resize_size == [232]
    assert np.abs(first(photos[:1]) - second(photos[:1])).max() > 0
    assert first.fingerprint != second.fingerprint


def test_the_fingerprint_follows_the_file_and_loads_no_network(hub: Path) -> None:
    torch.manual_seed(0)
    state = get_model("resnet18", weights=None).state_dict()
    torch.save(state, hub / "a.pth")
    torch.save({name: value + 1 for name, value in state.items()}, hub / "b.pth")
    model_a, model_b = (TorchvisionClassifier("resnet18", path=hub / name) for name in ("a.pth", "b.pth"))
    assert model_a.fingerprint != model_b.fingerprint
    assert "network" not in vars(model_a)
    facts = json.loads(TorchvisionClassifier("resnet18").fingerprint)
    assert facts["file"] == "resnet18-f37072fd.pth" and facts["weights"] == "IMAGENET1K_V1"


def test_wrong_names_and_files_are_reported_in_one_sentence(hub: Path, photos: Any) -> None:
    with pytest.raises(ModelError, match=r"architecture: torchvision has no 'resnet50' in .*known: deeplabv3_mobilenet"):
        _ = TorchvisionSemantic("resnet50").fingerprint
    with pytest.raises(ModelError, match=r"weights: resnet50 has no 'COCO_V1'; known: .*IMAGENET1K_V2"):
        _ = TorchvisionClassifier("resnet50", weights="COCO_V1").fingerprint
    torch.save({"foreign": torch.zeros(1)}, hub / "foreign.pth")
    with pytest.raises(ModelError, match=r"foreign\.pth: these are no weights of ResNet18_Weights"):
        TorchvisionClassifier("resnet18", path=hub / "foreign.pth")(photos[:1])


def test_the_error_for_unreachable_weights_says_where_to_put_them(hub: Path, photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # The discard port, on which no server answers.
    with pytest.raises(ModelError, match=r"put the file at .*resnet18-f37072fd\.pth \(TORCH_HOME\), or give `path`"):
        TorchvisionClassifier("resnet18")(photos[:1])


def test_batches_hold_one_shape_and_keep_the_order() -> None:
    sizes = [(2, 3), (4, 5), (2, 3), (2, 3), (4, 5)]
    images = [np.full((*size, 3), i, np.uint8) for i, size in enumerate(sizes)]
    batches: list[list[int]] = []

    def run(batch: list[Any]) -> list[int]:
        assert len({image.shape for image in batch}) == 1
        batches.append([int(image.flat[0]) for image in batch])
        return batches[-1]

    assert by_shape(images, 2, run) == [0, 1, 2, 3, 4]
    assert batches == [[0, 2], [3], [1, 4]]


def test_a_batch_changes_scores_by_rounding_only(hub: Path, photos: Any) -> None:
    path = save_random_weights("fasterrcnn_mobilenet_v3_large_320_fpn", hub)
    singles, batched = (
        TorchvisionDetector("fasterrcnn_mobilenet_v3_large_320_fpn", path=path, score_threshold=0.0, batch_size=size)(photos)
        for size in (1, 4)
    )
    for single, batch_member in zip(singles, batched, strict=True):
        np.testing.assert_allclose(single["scores"], batch_member["scores"], atol=1e-5)
