"""FID and KID against torch-fidelity; its Inception runs with random weights."""

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.distribution import Distribution, fid, kid, patches
from icmbench.tasks.models.errors import ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    Pillow.new("RGB", (8, 8)).save(path / "a.png")
    return ImageFolder(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights in the layout of torch-fidelity's release."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # The class cannot be built without weights.
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path


def samples(count, dimensions, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    return np.abs(generator.normal(size=(count, dimensions)) @ mix + shift)


def reference_fid(first, second):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (first, second)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def reference_kid(first, second, size):
    from torch_fidelity.metric_kid import kid_features_to_metric

    features = (torch.from_numpy(first), torch.from_numpy(second))
    return kid_features_to_metric(*features, kid_subset_size=size, verbose=False)["kernel_inception_distance_mean"]


def test_fid_equals_torch_fidelity():
    first, second = samples(500, 64, 0), samples(400, 64, 1, 0.3)
    assert fid(first, second) == pytest.approx(reference_fid(first, second), rel=1e-9)
    assert fid(first, first) == pytest.approx(0, abs=1e-9)


def test_fid_of_fewer_patches_than_dimensions():
    """The reference's matrix root loses digits on singular covariances, so the tolerance is wider here."""
    first, second = samples(30, 64, 0), samples(30, 64, 1, 0.3)
    assert fid(first, second) == pytest.approx(reference_fid(first, second), rel=1e-5)
    assert fid(first, first) == pytest.approx(0, abs=1e-9)
    assert fid(first, first + 2) == pytest.approx(64 * 4, rel=1e-9)


def test_kid_equals_torch_fidelity():
    first, second = samples(200, 64, 0), samples(200, 64, 1, 0.3)
    assert kid(first, second) == pytest.approx(reference_kid(first, second, 200), rel=1e-9)
    first, second = samples(1400, 16, 2), samples(1200, 16, 3, 0.1)
    assert kid(first, second) == pytest.approx(reference_kid(first, second, 1000), rel=1e-9)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(255, 900, 0), (256, 256, 1), (383, 1000, 3), (384, 384, 1 + 1), (512, 768, 6 + 2), (768, 768, 9 + 4), (700, 512, 4 + 2)],
)
def test_patches_of_the_two_grids(height, width, count):
    image = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
    cut = list(patches(image))
    assert len(cut) == count and all(patch.shape == (256, 256, 3) for patch in cut)
    if count > 1 and min(height, width) >= 384:
        assert (
            cut[-1] == image[128:][(height - 128) // 256 * 256 - 256 :][:256, 128 + ((width - 128) // 256 - 1) * 256 :][:, :256]
        ).all()


def test_kodak_against_jpeg(folder, weights, shared):
    files = sorted((shared / "data" / "kodak").glob("*.png"))[:2]
    originals = [np.asarray(Pillow.open(file).convert("RGB"))[:384, :384] for file in files]
    coded = [np.asarray(Pillow.fromarray(image).quantize(4).convert("RGB")) for image in originals]
    small = np.zeros((64, 64, 3), np.uint8)
    task = Distribution(folder, weights, batch_size=3)
    reference = task.predict([*originals, small], ["a", "b", "c"])
    predictions = task.predict([*coded, small], ["a", "b", "c"])
    assert [task.is_empty(prediction) for prediction in predictions] == [False, False, True]
    assert len(predictions[0]["features"]) == 2 * 2048
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(list(patches(coded[1]))).transpose(0, 3, 1, 2))
        assert predictions[1]["features"] == pytest.approx(task.network(batch)[0].numpy().ravel(), abs=1e-6)

    targets = task.pseudo_targets(reference)
    values = task.aggregate(task.statistics(predictions, targets))
    arrays = [
        np.concatenate([entry["features"].reshape(-1, 2048) for entry in entries]).astype(float)
        for entries in (reference, predictions)
    ]
    assert values["kid"] == pytest.approx(reference_kid(*arrays, 4), rel=1e-6) and values["fid"] > 0
    assert task.aggregate(task.statistics(reference, targets))["fid"] == pytest.approx(0, abs=1e-8)
    doubled = task.aggregate(task.statistics(predictions, targets), np.array([2.0, 0, 1]))
    assert doubled["fid"] == pytest.approx(fid(np.repeat(arrays[0][:2], 2, axis=0), np.repeat(arrays[1][:2], 2, axis=0)), rel=1e-9)
    assert np.isnan(task.aggregate(task.statistics(predictions[2:], targets[2:]))["fid"])


def test_features_do_not_depend_on_the_other_images(folder, weights):
    """Rounding depends on the size of a batch, so no two images share one: features are equal to the last bit in any company."""
    images = [np.random.default_rng(seed).integers(0, 256, (384, 384, 3), np.uint8) for seed in range(3)]
    task, shapes = Distribution(folder, weights, batch_size=3), []
    task.network.register_forward_pre_hook(lambda _, inputs: shapes.append(len(inputs[0])))
    together = task.predict(images, ["a", "b", "c"])
    assert shapes == [2, 2, 2]  # Two patches of each.
    for image, prediction in zip(images, together, strict=True):
        assert np.array_equal(task.predict([image], ["x"])[0]["features"], prediction["features"])


def test_it_is_scored_against_the_originals_and_not_resampled(folder):
    task = Distribution(folder)
    assert task.reference == "original" and task.annotation is None and not task.needs_originals
    assert [spec.bootstrap for spec in task.metrics] == [False, False]


def test_predictions_fit_arrow(folder):
    import pyarrow as pa

    row = {"features": np.ones(2048, np.float32)}
    assert len(pa.Table.from_pylist([row], schema=Distribution(folder).schema).to_pylist()[0]["features"]) == 2048


def test_weights_are_named_where_they_are_missing_or_wrong(folder, weights, tmp_path, monkeypatch):
    import torch_fidelity.feature_extractor_inceptionv3 as module

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(module, "load_state_dict_from_url", unreachable)
    with pytest.raises(
        ModelError, match=r"fid and kid need .*\(no route to host\): get weights-inception-2015.* give it as `path`"
    ):
        _ = Distribution(folder).network
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"other\.pth: no weights of torch-fidelity's Inception"):
        _ = Distribution(folder, tmp_path / "other.pth").network
    torch.save({"module": folder}, tmp_path / "code.pth")
    with pytest.raises(ModelError, match=r"code\.pth: no weights of torch-fidelity's Inception \(Weights only load failed"):
        _ = Distribution(folder, tmp_path / "code.pth").network
    assert Distribution(folder).fingerprint != Distribution(folder, weights).fingerprint
