"""Grad-CAM masks on a network whose masks are known in advance, and on photographs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts import roi
from icmbench.codecs.diffusion.prompts.roi import Classifier, GradCamMasker


class ColourClassifier(nn.Module):
    """A classifier with two classes: how red the image is, and how green."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.dirac_(self.features.weight)
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def make_classifier():
    """A function that makes the classifier of colours, without normalisation."""
    network = ColourClassifier().requires_grad_(False)
    return lambda: Classifier(network, network.features, "colours", 16, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def picture():
    """A red area at the upper left, and a smaller and fainter green one at the lower right."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[:32, :48, 0] = 200
    image[48:, 72:, 1] = 100
    return image


def test_grad_cam_is_the_weighted_sum(make_classifier, picture):
    """For a linear head over mean features, the map of a class is its feature over the map's area (Selvaraju et al., section 3)."""
    classifier = make_classifier()
    inputs = classifier.inputs(picture)
    for target, channel in ((0, 0), (1, 1), (None, 0)):
        heat = roi.grad_cam(classifier.network, classifier.layer, inputs, target)
        assert torch.allclose(heat[0], inputs[0, channel].relu() / 256, atol=1e-7)
    assert all(parameter.grad is None for parameter in classifier.network.parameters())
    assert not classifier.layer._forward_hooks


def test_masks_cover_what_the_class_looks_at(make_classifier, picture):
    mask = GradCamMasker(make_classifier, threshold=0.5)(picture)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == ((64, 96), np.float32, {0.0, 1.0})
    assert mask[4:28, 4:44].all()
    assert not mask[36:, 52:].any()
    green = GradCamMasker(make_classifier, threshold=0.5)(picture, target=1)
    assert green[52:, 76:].all()
    assert not green[:40, :60].any()
    soft = GradCamMasker(make_classifier, threshold=0)(picture)
    assert (soft.min(), soft.max()) == (0, 1)
    assert len(np.unique(soft)) > 3
    assert GradCamMasker(make_classifier)(picture).sum() >= mask.sum()


def test_minmax_moves_the_minimum(make_classifier):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, 16:, 0] = 200
    assert GradCamMasker(make_classifier, 0.3, "max")(image).all()
    assert not GradCamMasker(make_classifier, 0.3, "minmax")(image)[:, :8].any()


def test_a_map_of_zeros_makes_the_whole_image_of_interest(make_classifier):
    assert GradCamMasker(make_classifier)(np.zeros((5, 7, 3), np.uint8)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 5)])
def test_any_size(make_classifier, size):
    image = np.full((*size, 3), 90, np.uint8)
    assert GradCamMasker(make_classifier)(image).shape == size


def test_masked_images_and_latents(picture):
    mask = np.zeros((64, 96), np.float32)
    mask[:, :48] = 1
    assert np.array_equal(roi.apply_mask(picture, mask)[:, :48], picture[:, :48])
    assert not roi.apply_mask(picture, mask)[:, 48:].any()
    small = roi.mask_to_latent(torch.from_numpy(mask)[None], 8, 12)
    assert small.shape == (1, 1, 8, 12)
    assert small[0, 0, 0].tolist() == [1.0] * 6 + [0.0] * 6


def test_efficientnet_looks_at_the_object(shared):
    """On photographs of COCO that show only animals, the mask covers more of the animals' boxes than by chance."""
    folder = shared / "data" / "coco"
    listed = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    animals = {category["id"] for category in listed["categories"] if category["supercategory"] == "animal"}
    masker = roi.build_masker("efficientnet-lite0", 0.5, "max")
    ratios = []
    for photo in listed["images"]:
        objects = [annotation for annotation in listed["annotations"] if annotation["image_id"] == photo["id"]]
        boxes = np.zeros((photo["height"], photo["width"]))
        for x, y, w, h in (annotation["bbox"] for annotation in objects):
            boxes[round(y) : round(y + h), round(x) : round(x + w)] = 1
        if {annotation["category_id"] for annotation in objects} <= animals and 0.05 < boxes.mean() < 0.5 and len(ratios) < 8:
            mask = masker(np.array(Image.open(folder / "val2017" / photo["file_name"]).convert("RGB")))
            ratios.append((mask * boxes).sum() / mask.sum() / boxes.mean())
    print("share of the mask within the animals' boxes over the boxes' share of the picture:", np.round(ratios, 2))
    assert len(ratios) >= 3
    assert np.mean(ratios) > 1.5
    assert masker.facts[1][0] == "efficientnet-lite0"


def test_resnet50_from_a_file(tmp_path, picture):
    import torchvision
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50()
    save_file(network.state_dict(), tmp_path / "resnet50.safetensors")
    masker = roi.build_masker(tmp_path / "resnet50.safetensors", 0.15, "max")
    assert masker(picture).shape == (64, 96)
    assert masker.facts[1][0] == "resnet50"
    assert masker.classifier.layer is masker.classifier.network.layer4


def test_functions_and_mistakes(picture):
    masker = roi.build_masker(lambda image: image[..., 0] > 0, 0.15, "max")
    assert masker(picture)[0, 0] == 1
    assert roi.build_masker("none", 0.15, "max") is None
    for function in (lambda image: image[:2, :2, 0] > 0, lambda image: image[..., 0]):
        with pytest.raises(CodecError, match=r"a mask of interest is"):
            roi.build_masker(function, 0.15, "max")(picture)
    for threshold, scale in ((1.5, "max"), (0.5, "sum")):
        with pytest.raises(CodecError, match=r"takes a threshold"):
            roi.build_masker("efficientnet-lite0", threshold, scale)
