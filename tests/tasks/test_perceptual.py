"""LPIPS, ST-LPIPS and DISTS against their authors' packages, on photographs. Backbones have random weights except in ST-LPIPS."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.perceptual import Dists, Lpips, StLpips

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")


def convolutional(name):
    """The convolutional part of a backbone, with random weights."""
    with torch.device("meta"):
        features = getattr(torchvision.models, name)().features
    torch.manual_seed(0)
    features.to_empty(device="cpu").load_state_dict({key: 0.05 * torch.randn(x.shape) for key, x in features.state_dict().items()})
    return features


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder of random weights in torchvision's layout, without the classifier."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("alexnet", "vgg16"):
        torch.save({f"features.{key}": x for key, x in convolutional(name).state_dict().items()}, folder / f"{name}.pth")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    Pillow.new("RGB", (8, 8)).save(path / "a.png")
    return ImageFolder(path)


@pytest.fixture(scope="module")
def photographs(shared):
    files = sorted((shared / "data" / "imagenet" / "val").glob("*.JPEG"))[:3]
    return [np.asarray(Pillow.open(file).convert("RGB").resize((64 + 8 * k, 76 - 4 * k))) for k, file in enumerate(files)]


def coded(image, quality):
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Pillow.open(buffer))


def tensor(image):
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


def assert_equals_reference(task, reference, photographs, tolerance):
    """Assert distance 0 for equal images, the reference's distance for coded ones, and a mean that follows the weights."""
    ids = list("abc")
    same = task.predict(photographs, ids, photographs)
    assert max(abs(prediction["distance"]) for prediction in same) < 1e-7
    images = [coded(photograph, 10) for photograph in photographs]
    predictions = task.predict(images, ids, photographs)
    with torch.inference_mode():
        expected = [float(reference(tensor(a), tensor(b))) for a, b in zip(photographs, images, strict=True)]
    assert [prediction["distance"] for prediction in predictions] == pytest.approx(expected, rel=tolerance)
    assert min(expected) > 1e-6
    statistics = task.statistics(predictions, [])
    assert task.aggregate(statistics)[task.name] == pytest.approx(np.mean(expected), rel=tolerance)
    assert task.aggregate(statistics, np.array([0.0, 1, 2]))[task.name] == pytest.approx(
        (expected[1] + 2 * expected[2]) / 3, rel=tolerance
    )


@pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained':UserWarning", "ignore:Arguments other than a weight enum:UserWarning"
)
@pytest.mark.parametrize(("net", "architecture"), [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_equals_its_package(folder, backbones, photographs, net, architecture, monkeypatch):
    lpips = pytest.importorskip("lpips")
    backbone = SimpleNamespace(features=convolutional(architecture))
    with monkeypatch.context() as patch:  # The package can only download its backbone.
        patch.setattr(torchvision.models, architecture, lambda **_: backbone)
        reference = lpips.LPIPS(net=net, verbose=False)
    assert_equals_reference(
        Lpips(folder, net, backbones / f"{architecture}.pth"), lambda a, b: reference(a, b, normalize=True), photographs, 1e-5
    )


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_stlpips_equals_its_package(folder, photographs, net):
    stlpips = pytest.importorskip("stlpips_pytorch.stlpips")
    reference = stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    assert_equals_reference(StLpips(folder, net), lambda a, b: reference(a, b, normalize=True), photographs, 1e-5)


def test_stlpips_grows_as_jpeg_gets_worse(folder, photographs):
    pytest.importorskip("stlpips_pytorch")
    task = StLpips(folder)
    distances = [task.predict([coded(photographs[0], quality)], ["a"], photographs[:1])[0]["distance"] for quality in (90, 40, 5)]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained':UserWarning", "ignore:Arguments other than a weight enum:UserWarning"
)
def test_dists_equals_its_package(folder, backbones, photographs, monkeypatch):
    package = pytest.importorskip("DISTS_pytorch.DISTS_pt")
    backbone = SimpleNamespace(features=convolutional("vgg16"))
    with monkeypatch.context() as patch:  # The package can only download its backbone.
        patch.setattr(package.models, "vgg16", lambda **_: backbone)
        reference = package.DISTS()
    assert_equals_reference(Dists(folder, backbones / "vgg16.pth"), reference, photographs, 1e-4)


def test_originals_pass_the_network_once_for_all_points(folder, backbones, photographs):
    pytest.importorskip("lpips")
    task = Lpips(folder, path=backbones / "alexnet.pth")
    passes = []
    task.network.model.net.register_forward_hook(lambda *_: passes.append(1))
    for quality in (5, 20, 50):
        task.predict([coded(photograph, quality) for photograph in photographs], list("abc"), photographs)
    assert len(passes) == 3 * 3 + 3


def test_one_number_an_image_fits_arrow(folder):
    import pyarrow as pa

    pytest.importorskip("stlpips_pytorch")
    task = StLpips(folder)
    assert [(spec.name, spec.higher_is_better, spec.primary) for spec in task.metrics] == [("stlpips", False, True)]
    assert pa.Table.from_pylist([{"distance": 0.25}], schema=task.schema).to_pylist() == [{"distance": 0.25}]


def test_fingerprints_hold_network_and_weights(folder, backbones):
    pytest.importorskip("lpips")
    alex = backbones / "alexnet.pth"
    tasks = [Lpips(folder), Lpips(folder, "vgg"), Lpips(folder, path=alex), StLpips(folder), StLpips(folder, "vgg"), Dists(folder)]
    assert len({task.fingerprint for task in tasks}) == 6
    assert "0.1.4" in Lpips(folder).fingerprint


def test_weights_of_another_network_are_refused(folder, backbones):
    pytest.importorskip("lpips")
    with pytest.raises(ModelError, match=r"alexnet\.pth: no weights of torchvision's vgg16"):
        _ = Lpips(folder, "vgg", backbones / "alexnet.pth").network
