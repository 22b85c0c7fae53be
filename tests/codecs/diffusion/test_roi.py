"""Grad-CAM masks: what they must be on networks whose answer is known, and that they find things in photographs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts import roi
from icmbench.codecs.diffusion.prompts.roi import Classifier, GradCamMask


class Spots(nn.Module):
    """Two classes: how red the image is, how green."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.features.weight)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def spots():
    network = Spots().requires_grad_(False)
    return lambda: Classifier(network, network.features, "spots", 16, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def picture():
    """Red at the upper left, a smaller and fainter green at the lower right."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48, 0] = 200
    image[48:, 72:, 1] = 100
    return image


def test_grad_cam_is_the_weighted_sum(spots, picture):
    """For a linear head over mean features, the map of a class is its feature over the map's area (paper, section 3)."""
    made = spots()
    inputs = made.inputs(picture)
    for target, channel in ((0, 0), (1, 1), (None, 0)):
        heat = roi.grad_cam(made.network, made.layer, inputs, target)
        assert torch.allclose(heat[0], inputs[0, channel].relu() / 256, atol=1e-7)
    assert all(parameter.grad is None for parameter in made.network.parameters())
    assert not made.layer._forward_hooks


def test_masks_cover_what_the_class_looks_at(spots, picture):
    mask = GradCamMask(spots, threshold=0.5)(picture)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((64, 96), np.float32, {0.0, 1.0})
    assert mask[4:28, 4:44].all()
    assert not mask[36:, 52:].any()
    green = GradCamMask(spots, threshold=0.5)(picture, target=1)
    assert green[52:, 76:].all()
    assert not green[:40, :60].any()
    soft = GradCamMask(spots, threshold=0)(picture)
    assert (soft.min(), soft.max()) == (0, 1)
    assert len(np.unique(soft)) > 3
    assert GradCamMask(spots)(picture).sum() >= mask.sum()


def test_scale_moves_the_minimum(spots):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, 16:, 0] = 200
    assert GradCamMask(spots, 0.3, "max")(image).all()
    assert not GradCamMask(spots, 0.3, "minmax")(image)[:, :8].any()


def test_where_nothing_is_seen_all_is_of_interest(spots):
    assert GradCamMask(spots)(np.zeros((5, 7, 3), np.uint8)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 5)])
def test_any_size(spots, size):
    image = np.full((*size, 3), 90, np.uint8)
    assert GradCamMask(spots)(image).shape == size


def test_masked_images_and_latents(picture):
    mask = np.zeros((64, 96), np.float32)
    mask[:, :48] = 1
    assert np.array_equal(roi.masked(picture, mask)[:, :48], picture[:, :48])
    assert not roi.masked(picture, mask)[:, 48:].any()
    small = roi.to_latent(torch.from_numpy(mask)[None], 8, 12)
    assert small.shape == (1, 1, 8, 12)
    assert small[0, 0, 0].tolist() == [1.0] * 6 + [0.0] * 6


def test_efficientnet_looks_at_the_object(shared):
    """On COCO's photographs of animals alone, the mask has more of the animals' boxes than chance would give it."""
    folder = shared / "data" / "coco"
    listed = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    animals = {category["id"] for category in listed["categories"] if category["supercategory"] == "animal"}
    mask = roi.roi_of("efficientnet-lite0", 0.5, "max")
    ratios = []
    for photo in listed["images"]:
        things = [thing for thing in listed["annotations"] if thing["image_id"] == photo["id"]]
        boxes = np.zeros((photo["height"], photo["width"]))
        for x, y, w, h in (thing["bbox"] for thing in things):
            boxes[round(y) : round(y + h), round(x) : round(x + w)] = 1
        if {thing["category_id"] for thing in things} <= animals and 0.05 < boxes.mean() < 0.5 and len(ratios) < 8:
            found = mask(np.array(Image.open(folder / "val2017" / photo["file_name"]).convert("RGB")))
            ratios.append((found * boxes).sum() / found.sum() / boxes.mean())
    print("share of the mask within the animals' boxes over the boxes' share of the picture:", np.round(ratios, 2))
    assert len(ratios) >= 3
    assert np.mean(ratios) > 1.5
    assert mask.facts[1][0] == "efficientnet-lite0"


def test_resnet50_from_a_file(tmp_path, picture):
    import torchvision
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50()
    save_file(network.state_dict(), tmp_path / "resnet50.safetensors")
    mask = roi.roi_of(tmp_path / "resnet50.safetensors", 0.15, "max")
    assert mask(picture).shape == (64, 96)
    assert mask.facts[1][0] == "resnet50"
    assert mask.classifier.layer is mask.classifier.network.layer4


def test_functions_and_mistakes(picture):
    given = roi.roi_of(lambda image: image[..., 0] > 0, 0.15, "max")
    assert given(picture)[0, 0] == 1
    assert roi.roi_of("none", 0.15, "max") is None
    for function in (lambda image: image[:2, :2, 0] > 0, lambda image: image[..., 0]):
        with pytest.raises(CodecError, match=r"a mask of interest is"):
            roi.roi_of(function, 0.15, "max")(picture)
    for threshold, scale in ((1.5, "max"), (0.5, "sum")):
        with pytest.raises(CodecError, match=r"takes a threshold"):
            roi.roi_of("efficientnet-lite0", threshold, scale)
