"""The small trained weights on photographs that they were not trained on.

`test_curve` prints rate, PSNR and perceptual distance of all codecs. The mean colour and the VAE's reconstruction of the
uncompressed latent serve as lower and upper bounds, and JPEG with at most as many bytes as a comparison. The photographs are
Kodak's, from ICMBENCH_TEST_DATA, and those of scikit-image and scikit-learn. The distance is ST-LPIPS with VGG-16; training
minimised the one with AlexNet. ICMBENCH_CURVE names a CSV file to write.

`test_mechanisms` prints what each of the papers' mechanisms gains at this scale. ICMBENCH_ABLATIONS names a folder with what the
recipes of the ablations exported (recipes/ beside the weights), and ICMBENCH_ABLATIONS_CSV a CSV file to write.
"""

import io
import json
import os
import re
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from icmbench.codecs.base import compress_all, decompress_all
from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.diffusion.backbone.files import BACKBONE, PRETRAINED
from icmbench.codecs.training.photos import colours, salience
from icmbench.tasks.datasets.packaged import PackagedPhotos

FOLDER = Path(os.environ.get("ICMBENCH_WEIGHTS", PRETRAINED / "tiny"))
KODAK = Path(os.environ.get("ICMBENCH_TEST_DATA", "absent")) / "data" / "kodak"
OPTIONS = {  # Decoding options by codec; no text is sent.
    "elic": {},
    "diff-icmh": {"profile": "tiny", "sampler": "ddim", "steps": 4, "colour": "wavelet"},
    "resulic": {"profile": "tiny", "cfg": 1},
    "slim": {"profile": "tiny", "colour": "wavelet"},
    "cadc": {"profile": "tiny"},
}
ABLATIONS = Path(os.environ.get("ICMBENCH_ABLATIONS", "absent"))
SIDE = 384  # Side in pixels of the centre crops; all codecs pad this size alike.


def photographs():
    packaged = PackagedPhotos()
    images = {image_id: packaged.read(image_id) for image_id in packaged.ids if not image_id.startswith("foolbox/")}
    images |= {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in sorted(KODAK.glob("*.png"))}
    return {name: centre_crop(image) for name, image in images.items() if min(image.shape[:2]) >= SIDE}


def centre_crop(image):
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def trained_points():
    """The rate points of each codec for which there are weights."""
    points = {}
    for path in FOLDER.glob("*-lambda*.safetensors"):
        name, point = re.fullmatch(r"(.+)-lambda(.+)\.safetensors", path.name).groups()
        points.setdefault(name, []).append(float(point) if "." in point else int(point))
    return {name: sorted(values) for name, values in sorted(points.items())}


def build_codec(name, point, weights=FOLDER, **options):
    codec_class = next(iter(entry_points(group="icmbench.codecs", name=name))).load()
    return codec_class(point, weights=weights, **(OPTIONS[name] | options))


def mechanisms(tags):
    """For each mechanism, (codec, point, weights, options) with it and without it. tags: JSON file of the colours in each image."""
    with_tags = {"tags": tags, "vocabulary": FOLDER / "vocabulary.txt"}
    plain_diffusion = {"cdm": False, "steps": 4}
    many_steps = {"cdm": False, "steps": 20}  # The paper runs ANS in 50 and 20.
    return {
        "tags": (("diff-icmh", 4, FOLDER, with_tags), ("diff-icmh", 4, FOLDER, {})),
        "semantic consistency": (("diff-icmh", 4, ABLATIONS / "semantic-on", {}), ("diff-icmh", 4, ABLATIONS / "semantic-off", {})),
        "compression-aware diffusion": (
            ("resulic", 3, ABLATIONS / "cdm-on", {}),
            ("resulic", 3, ABLATIONS / "cdm-off", plain_diffusion),
        ),
        "stochastic sampling": (("resulic", 3, ABLATIONS / "eta-1", {"eta": 1}), ("resulic", 3, ABLATIONS / "cdm-on", {})),
        "ANS": (
            ("resulic", 3, ABLATIONS / "cdm-off", {**many_steps, "ans": True}),
            ("resulic", 3, ABLATIONS / "cdm-off", many_steps),
        ),
        "RoI masks": (("slim", 2, ABLATIONS / "roi-on", {}), ("slim", 2, ABLATIONS / "roi-off", {})),
        "UGAQ": (("cadc", 8, ABLATIONS / "ugaq-on", {}), ("cadc", 8, ABLATIONS / "ugaq-off", {"ugaq": False})),
    }


def vae_reconstructions(images):
    base = stable_diffusion.load_backbone("tiny", FOLDER / BACKBONE, torch.float32, "cpu")
    with torch.inference_mode():
        pixels = [torch.from_numpy(image).permute(2, 0, 1)[None] / 255 for image in images]
        decoded = [base.decode(base.encode(image))[0].permute(1, 2, 0).numpy() for image in pixels]
    return [np.round(image * 255).astype(np.uint8) for image in decoded]


def jpeg_within(image, limit):
    """The best JPEG of at most `limit` bytes: the highest quality that fits, at full size if possible, or reduced by 2, 4 or 8.

    Returns the decoded image, and the size in bytes.
    """
    full = Image.fromarray(image)
    for reduction in (1, 2, 4, 8):
        small = full.reduce(reduction)
        for quality in (95, 80, 60, 40, 30, 20, 15, 10, 5, 1):
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality, optimize=True)
            if len(buffer.getvalue()) <= limit:
                return np.asarray(Image.open(buffer).resize(full.size, Image.Resampling.BICUBIC)), len(buffer.getvalue())
    return np.asarray(small.resize(full.size)), len(buffer.getvalue())


class Measurement:
    """Measures bpp, PSNR and perceptual distance of reconstructions, as means over images, and collects the rows."""

    def __init__(self, originals):
        from icmbench.codecs.perceptual import perceptual_distance

        self.originals, self.network, self.rows = originals, perceptual_distance("stlpips-vgg", "cpu"), []
        self.masks = [np.asarray(salience(image)) > 127 for image in originals]

    def __call__(self, codec, point, images, sizes=None):
        errors = [(a.astype(float) - b) ** 2 for a, b in zip(self.originals, images)]
        psnr = [10 * np.log10(255**2 / error.mean()) for error in errors]
        inside = [10 * np.log10(255**2 / error[mask].mean()) for error, mask in zip(errors, self.masks)]
        with torch.inference_mode():
            pairs = [[torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in pair] for pair in zip(images, self.originals)]
            distances = [float(self.network(*pair)) for pair in pairs]
        pixels = sum(image.shape[0] * image.shape[1] for image in images)
        row = {
            "codec": codec,
            "point": point,
            "bpp": 8 * sum(sizes) / pixels if sizes else np.nan,
            "psnr": np.mean(psnr),
            "psnr_roi": np.mean(inside),
            "stlpips_vgg": np.mean(distances),
        }
        self.rows.append(row)
        print("  ".join(f"{value:.4f}" if isinstance(value, float) else f"{value:>10}" for value in row.values()), flush=True)
        return row


@pytest.mark.skipif(not (FOLDER / BACKBONE).is_file(), reason="there are no trained weights")
def test_curve():
    warnings.simplefilter("ignore")
    images = list(photographs().values())
    measure = Measurement(images)
    means = [np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy() for image in images]
    worst = measure("mean colour", "", means)["stlpips_vgg"]
    best = measure("VAE alone", "", vae_reconstructions(images))["stlpips_vgg"]
    for name, points in trained_points().items():
        for point in points:
            codec = build_codec(name, point)
            streams = compress_all(codec, images, [str(k) for k in range(len(images))])
            row = measure(name, point, decompress_all(codec, streams), [len(stream) for stream in streams])
            row["gap_closed"] = (worst - row["stlpips_vgg"]) / (worst - best)
            jpegs = [jpeg_within(image, len(stream)) for image, stream in zip(images, streams)]
            measure("jpeg at most as large", f"{name} {point:g}", [image for image, _ in jpegs], [size for _, size in jpegs])
    table = pd.DataFrame(measure.rows)
    print(table.to_string(float_format="{:.4f}".format))
    if "ICMBENCH_CURVE" in os.environ:
        table.round(5).to_csv(os.environ["ICMBENCH_CURVE"], index=False)


@pytest.mark.skipif(not ABLATIONS.is_dir(), reason="ICMBENCH_ABLATIONS names no folder of weights")
def test_mechanisms(tmp_path):
    warnings.simplefilter("ignore")
    named_images = photographs()
    images, measure = list(named_images.values()), Measurement(list(named_images.values()))
    tags = tmp_path / "tags.json"
    tags.write_text(json.dumps({name: colours(image) for name, image in named_images.items()}))
    for mechanism, pair in mechanisms(tags).items():
        for state, (name, point, weights, options) in zip(("on", "off"), pair):
            codec = build_codec(name, point, weights, **options)
            streams = compress_all(codec, images, list(named_images))
            row = measure(name, point, decompress_all(codec, streams), [len(stream) for stream in streams])
            row |= {"mechanism": mechanism, "state": state}
    table = pd.DataFrame(measure.rows)
    print(table.to_string(float_format="{:.4f}".format))
    if "ICMBENCH_ABLATIONS_CSV" in os.environ:
        table.round(5).to_csv(os.environ["ICMBENCH_ABLATIONS_CSV"], index=False)
