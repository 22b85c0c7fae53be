"""The small trained weights of this package: complete, small, ordered in rate, and better than a photograph's mean colour."""

import re
import warnings
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.diffusion.backbone.files import BACKBONE, PRETRAINED

FOLDER = PRETRAINED / "tiny"
FILES = sorted(FOLDER.glob("*-lambda*.safetensors"))
NAMES = sorted({path.name.partition("-lambda")[0] for path in FILES})

# The options of `icmbench demo`.
OPTIONS = {"diff-icmh": {"sampler": "ddim", "steps": 4, "colour": "wavelet"}, "slim": {"colour": "wavelet"}}

pytestmark = pytest.mark.skipif(not FILES, reason="no trained weights in this checkout")


@pytest.fixture(scope="module")
def photo():
    """A crop of scikit-learn's photograph, which was not trained on."""
    return np.ascontiguousarray(load_sample_image("china.jpg")[100:292, 200:456])


@pytest.fixture(scope="module")
def distance():
    from icmbench.codecs.perceptual import perceptual_distance

    network = perceptual_distance("stlpips-alex", "cpu")

    def between(first, second):
        with torch.inference_mode():
            return float(network(*(torch.tensor(image).permute(2, 0, 1)[None] / 255 for image in (first, second))))

    return between


def error(first, second):
    return np.mean((first.astype(float) - second) ** 2)


def mean_colour(image):
    return np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy()


def points(name):
    return sorted(float(re.search(r"lambda(.+)\.safetensors", path.name)[1]) for path in FILES if path.name.startswith(f"{name}-"))


def build(name, point):
    codec_class = next(iter(entry_points(group="icmbench.codecs", name=name))).load()
    point = int(point) if point == int(point) else point
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A missing file would mean random weights and a warning.
        if name == "elic":
            return codec_class(point, weights="tiny")
        return codec_class(point, profile="tiny", **OPTIONS.get(name, {}))


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 40e6
    assert all(len(points(name)) >= 3 for name in NAMES)


def test_the_vae_beats_the_mean_colour_by_far(photo):
    base = stable_diffusion.load_backbone("tiny", FOLDER / BACKBONE, torch.float32, "cpu")
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        z = base.encode(pixels)
        decoded = (base.decode(z)[0].permute(1, 2, 0) * 255).numpy()
    assert error(decoded, photo) < error(mean_colour(photo), photo) / 5
    assert 0.3 < float(z.std()) < 3


@pytest.mark.parametrize("name", NAMES)
def test_rate_falls_with_lambda_and_pictures_beat_the_mean_colour(name, photo, distance):
    sizes = []
    for point in points(name):
        codec = build(name, point)
        stream = codec.compress(photo)
        decoded = codec.decompress(stream)
        sizes.append(len(stream))
        assert decoded.shape == photo.shape
        assert error(decoded, photo) < error(mean_colour(photo), photo)
        assert distance(decoded, photo) < distance(mean_colour(photo), photo)
    rising = name == "elic"  # Its lambda weighs the distortion; that of the other codecs weighs the rate.
    assert sizes == sorted(set(sizes), reverse=not rising)
