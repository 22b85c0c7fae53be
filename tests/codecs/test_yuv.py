"""Conversion between RGB and 10-bit YCbCr: known colours, losslessness, planes in order, bad sizes."""

import numpy as np
import pytest

from icmbench.codecs.yuv import from_samples, to_samples

from .helpers import smooth_image


@pytest.mark.parametrize(
    ("rgb", "samples"),
    [  # computed by hand from BT.709's Kr = 0.2126 and Kb = 0.0722, full range; 511.5 rounds to the even 512
        ((0, 0, 0), (0, 512, 512)),
        ((255, 255, 255), (1023, 512, 512)),
        ((255, 0, 0), (217, 394, 1023)),
        ((0, 0, 255), (74, 1023, 465)),
        ((0, 255, 0), (732, 117, 47)),
    ],
)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_known_colours(rgb, samples, subsampling):
    image = np.full((2, 4, 3), rgb, np.uint8)
    chroma = 2 if subsampling == "4:2:0" else 8
    planar = to_samples(image, subsampling)
    assert planar.tolist() == [samples[0]] * 8 + [samples[1]] * chroma + [samples[2]] * chroma
    assert np.array_equal(from_samples(planar, 4, 2, subsampling), image)


def test_no_colour_changes_at_full_resolution():
    green, blue = np.mgrid[:256, :256].astype(np.uint8)
    for red in range(0, 256, 5):
        image = np.stack([np.full_like(green, red), green, blue], -1)
        assert np.array_equal(from_samples(to_samples(image), 256, 256), image)


def test_samples_are_little_endian_words_of_ten_bits():
    samples = to_samples(np.full((1, 1, 3), 255, np.uint8))
    assert samples.tobytes() == b"\xff\x03\x00\x02\x00\x02"
    noise = to_samples(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "4:2:0")
    assert noise.dtype == np.dtype("<u2") and noise.max() <= 1023  # although Lanczos' kernel overshoots


@pytest.mark.parametrize("shape", [(2, 2), (2, 64), (64, 2), (34, 48)], ids=str)
def test_halved_chroma_keeps_smooth_images(shape):
    image = smooth_image(*shape)
    samples = to_samples(image, "4:2:0")
    assert samples.size == image.size // 2
    again = from_samples(samples, shape[1], shape[0], "4:2:0")
    assert again.shape == image.shape and again.dtype == np.uint8
    assert np.abs(again.astype(int) - image).max() <= 12
    if min(shape) > 2:
        assert np.abs(again.astype(int) - image).mean() < 0.5


def test_halved_chroma_is_not_shifted():
    image = smooth_image(40, 60)
    mirrored = from_samples(to_samples(image[::-1, ::-1], "4:2:0"), 60, 40, "4:2:0")[::-1, ::-1]
    assert np.abs(mirrored.astype(int) - from_samples(to_samples(image, "4:2:0"), 60, 40, "4:2:0")).max() <= 1


@pytest.mark.parametrize(("count", "subsampling"), [(0, "4:4:4"), (23, "4:4:4"), (48, "4:4:4"), (24, "4:2:0"), (11, "4:2:0")])
def test_another_number_of_samples_is_refused(count, subsampling):
    with pytest.raises(ValueError, match=f"{count} samples, where a 4x2 image has"):
        from_samples(np.zeros(count, "<u2"), 4, 2, subsampling)
