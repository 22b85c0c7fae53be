"""PSNR and MS-SSIM against their definitions and scikit-image."""

import io
import math

import numpy as np
import pytest
from PIL import Image as Pillow
from skimage.metrics import peak_signal_noise_ratio

from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.fidelity import Fidelity, ms_ssim, psnr


@pytest.fixture(scope="module")
def photo(shared):
    with Pillow.open(sorted((shared / "data" / "kodak").glob("*.png"))[0]) as picture:
        return np.asarray(picture.crop((100, 100, 356, 300)))


def jpeg(image, quality):
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Pillow.open(buffer))


def test_psnr_equals_scikit_image(photo):
    for quality in (5, 50, 95):
        other = jpeg(photo, quality)
        assert psnr(photo, other) == pytest.approx(peak_signal_noise_ratio(photo, other, data_range=255), abs=1e-12)


def test_equal_images_count_as_one_sample_off_by_one(photo):
    nearly = photo.copy()
    nearly[0, 0, 0] ^= 1
    assert psnr(photo, photo) == psnr(photo, nearly) == pytest.approx(10 * math.log10(255**2 * photo.size))


def test_psnr_of_black_and_white():
    black = np.zeros((2, 3, 3), np.uint8)
    assert psnr(black, black + 255) == 0


def reference_ms_ssim(first, second):
    """Wang et al. 2003 in plain numpy: 11-tap Gaussian of sigma 1.5, valid region, 2x2 means between five scales."""
    from scipy.ndimage import correlate1d

    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x):
        return correlate1d(correlate1d(x, window, 0), window, 1)[5:-5, 5:-5]

    channels = []
    for a, b in zip(first.astype(float).transpose(2, 0, 1), second.astype(float).transpose(2, 0, 1)):
        product = 1.0
        for level, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
            mean_a, mean_b = blur(a), blur(b)
            var_a, var_b, both = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
            contrast = (2 * both + (0.03 * 255) ** 2) / (var_a + var_b + (0.03 * 255) ** 2)
            light = (2 * mean_a * mean_b + (0.01 * 255) ** 2) / (mean_a**2 + mean_b**2 + (0.01 * 255) ** 2)
            product *= np.mean(contrast * light if level == 4 else contrast) ** weight
            a, b = (x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2].reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) for x in (a, b))
        channels.append(product)
    return np.mean(channels)


def test_ms_ssim_equals_its_definition(photo):
    # 176 halves evenly four times; odd sizes are padded differently by every implementation.
    photo = photo[:176]
    for quality in (5, 50):
        assert ms_ssim(photo, jpeg(photo, quality)) == pytest.approx(reference_ms_ssim(photo, jpeg(photo, quality)), abs=2e-5)


def test_small_images_have_no_ms_ssim_but_a_psnr(tmp_path, photo):
    for name, side in (("a.png", 161), ("b.png", 160)):
        Pillow.fromarray(photo[:side]).save(tmp_path / name)
    task = Fidelity(ImageFolder(tmp_path))
    originals = [task.dataset.read(image_id) for image_id in task.ids]
    images = [jpeg(image, 30) for image in originals]
    large, small = task.predict(images, task.ids, originals)
    assert large["ms_ssim"] > 0.9 and small["ms_ssim"] is None
    assert [task.is_empty(prediction) for prediction in (large, small)] == [False, True]
    statistics = task.statistics([large, small], task.targets(task.ids))
    scores = task.aggregate(statistics)
    assert scores == pytest.approx({"psnr": (large["psnr"] + small["psnr"]) / 2, "ms_ssim": large["ms_ssim"]})
    assert scores == task.aggregate(statistics, np.ones(2))
    weighted = task.aggregate(statistics, np.array([0.0, 3.0]))
    assert weighted["psnr"] == pytest.approx(small["psnr"]) and np.isnan(weighted["ms_ssim"])


def test_fidelity_is_scored_on_all_images_against_their_originals(tmp_path, photo):
    Pillow.fromarray(photo).save(tmp_path / "a.png")
    task = Fidelity(ImageFolder(tmp_path))
    assert task.needs_originals and task.annotation is None and task.ids == ["a.png"]
    (prediction,) = task.predict([photo], ["a.png"], [photo])
    assert prediction["ms_ssim"] == pytest.approx(1, abs=1e-6)
