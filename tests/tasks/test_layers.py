"""1 - cosine of layer features, on photographs, with real architectures and random weights."""

import io
import json

import numpy as np
import pytest
from PIL import Image as Pillow

from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.layers import LayerDifference, cosine_distance
from icmbench.tasks.models import timm_models
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.originals import OriginalFeatures

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """A file of random weights in torchvision's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(torchvision.models.resnet50().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photographs(shared):
    """Four ImageNet photographs of different sizes, a little over 128 pixels."""
    files = sorted((shared / "data" / "imagenet" / "val").glob("*.JPEG"))[:4]
    return [np.asarray(Pillow.open(file).convert("RGB").resize((128 + 8 * k, 136 - 4 * k))) for k, file in enumerate(files)]


def coded(image, quality):
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Pillow.open(buffer))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    Pillow.new("RGB", (8, 8)).save(path / "a.png")
    return ImageFolder(path)


@pytest.fixture(scope="module")
def resnet_task(folder, resnet50):
    return LayerDifference(folder, path=resnet50)


def test_every_residual_block_of_resnet50(resnet_task, resnet50, photographs):
    task = resnet_task
    blocks = {1: 3, 2: 4, 3: 6, 4: 3}
    assert task.layers == [f"layer{stage}.{block}" for stage, count in blocks.items() for block in range(count)]
    assert [spec.name for spec in task.metrics] == task.layers and [spec.primary for spec in task.metrics].index(True) == 15
    ids = list("abcd")
    same = task.predict(photographs, ids, photographs)
    assert max(max(prediction["differences"]) for prediction in same) < 1e-12

    images = [coded(photograph, 10) for photograph in photographs]
    predictions = task.predict(images, ids, photographs)
    network = torchvision.models.resnet50()
    network.load_state_dict(torch.load(resnet50, weights_only=True))
    expected = []
    for photograph, image in zip(photographs, images, strict=True):
        features = [stages(network.eval(), pixels) for pixels in (photograph, image)]
        expected.append([1 - torch.cosine_similarity(a.flatten(), b.flatten(), 0).item() for a, b in zip(*features, strict=True)])
    assert np.array([p["differences"] for p in predictions]) == pytest.approx(np.array(expected), abs=1e-9)
    values = task.aggregate(task.statistics(predictions, []))
    assert list(values.values()) == pytest.approx(np.mean(expected, axis=0), abs=1e-9)
    weighted = task.aggregate(task.statistics(predictions, []), np.array([0.0, 3, 0, 1]))
    assert weighted["layer4.2"] == pytest.approx((3 * expected[1][-1] + expected[3][-1]) / 4, abs=1e-9)


def stages(network, pixels):
    """The sixteen block outputs in float64, computed module by module."""
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    outputs = []
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for block in stage:
                x = block(x)
                outputs.append(x.double())
    return outputs


def test_originals_pass_the_network_once_for_all_points(resnet_task, photographs):
    passes = []
    handle = resnet_task.features.network.register_forward_hook(lambda *_: passes.append(1))
    for quality in (5, 20, 50):
        resnet_task.predict([coded(photograph, quality) for photograph in photographs], list("efgh"), photographs)
    assert len(passes) == 3 * 4 + 4
    resnet_task.predict([photographs[1]], ["i"], [photographs[1]])  # The next chunk.
    resnet_task.predict([photographs[0]], ["i"], [photographs[0]])  # Another image under the same id.
    handle.remove()
    assert len(passes) == 3 * 4 + 4 + 4


def test_memory_of_originals_is_bounded():
    computed = []
    features = OriginalFeatures(lambda image: computed.append(1) or image, lambda image: image.nbytes, max_bytes=250)
    images = {name: np.full((10, 10), k, np.uint8) for k, name in enumerate("abcd")}
    for _ in range(3):
        for name in "abc":
            assert (features.get(name, images[name], "abc") == images[name]).all()
            assert features.kept_bytes <= 250
    assert len(computed) == 2 + 3  # Two are kept, the third is computed each time.
    features.get("d", images["d"], "d")
    features.get("d", images["d"], "d")
    assert len(computed) == 6 and features.kept_bytes == 200


def test_any_network_and_layers(folder, photographs, tmp_path):
    torch.manual_seed(1)
    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "alexnet.pth")
    task = LayerDifference(folder, network="alexnet", path=tmp_path / "alexnet.pth", layers=["features.0", "features.3"])
    (same,) = task.predict(photographs[:1], ["a"], photographs[:1])
    assert same["differences"].max() < 1e-12  # The ReLU that follows the first layer works in place.
    (worse,) = task.predict([coded(photographs[0], 5)], ["a"], photographs[:1])
    assert (worse["differences"] > 1e-4).all()


def test_timm(folder, photographs, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(2)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r.pth")
    task = LayerDifference(folder, library="timm", network="resnet18", path=tmp_path / "r.pth")
    assert task.layers == [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    (prediction,) = task.predict([coded(photographs[0], 10)], ["a"], photographs[:1])
    assert len(prediction["differences"]) == 8 and prediction["differences"].min() > 0
    with pytest.raises(ModelError, match="in timm; see timm"):
        _ = LayerDifference(folder, library="timm", network="resnet5").metrics


def test_the_fingerprint_holds_the_commit_of_timms_weights(folder, monkeypatch):
    """The hub's weights of one name may be replaced, and features of other weights are other features."""
    pytest.importorskip("timm")
    commits = {"timm/resnet18.a1_in1k": "1" * 40}
    asked = []

    def commit_of(repository, revision=None):
        asked.append(repository)
        if repository not in commits:
            raise ModelError("out of reach")
        return commits[repository]

    monkeypatch.setattr(timm_models, "commit_of", commit_of)
    task = LayerDifference(folder, library="timm", network="resnet18.a1_in1k")
    first = json.loads(task.fingerprint)
    assert first["weights"] == {"timm/resnet18.a1_in1k": "1" * 40} and json.loads(task.fingerprint) == first and len(asked) == 1
    commits["timm/resnet18.a1_in1k"] = "2" * 40
    other = LayerDifference(folder, library="timm", network="resnet18.a1_in1k").fingerprint
    assert json.loads(other) == first | {"weights": commits}
    commits.clear()  # Where nobody knows the commit, there are no weights either.
    assert json.loads(LayerDifference(folder, library="timm", network="resnet18.a1_in1k").fingerprint)["weights"] is None


def test_predictions_fit_arrow(resnet_task, photographs):
    import pyarrow as pa

    rows = resnet_task.predict([coded(photographs[0], 10)], ["a"], photographs[:1])
    assert pa.Table.from_pylist(rows, schema=resnet_task.schema).to_pylist()[0]["differences"] == rows[0]["differences"].tolist()


def test_metrics_need_no_weights(folder):
    assert len(LayerDifference(folder).metrics) == 16
    assert len(LayerDifference(folder, network="resnet18").metrics) == 8


def test_features_that_are_zero():
    zero, one = torch.zeros(4), torch.ones(4)
    assert cosine_distance(zero, zero) == 0 and cosine_distance(zero, one) == 1
    assert cosine_distance(one, -one) == 2 and cosine_distance(one, 5 * one) == 0


def test_fingerprint_holds_what_decides_the_numbers(folder, resnet50):
    tasks = [
        LayerDifference(folder),
        LayerDifference(folder, weights="IMAGENET1K_V2"),
        LayerDifference(folder, path=resnet50),
        LayerDifference(folder, layers=["layer1.0"]),
        LayerDifference(folder, network="resnet101"),
    ]
    assert len({task.fingerprint for task in tasks}) == 5


def test_errors_name_the_remedy(folder, resnet50):
    with pytest.raises(ModelError, match=r"has no module 'layer1\.9'; near: layer1\."):
        _ = LayerDifference(folder, layers=["layer1.9"]).metrics
    with pytest.raises(ModelError, match=r"no residual blocks layer1\.0 \.\.\.; give `layers`, modules within features"):
        _ = LayerDifference(folder, network="vgg16").metrics
    with pytest.raises(ModelError, match="in torchvision; see"):
        _ = LayerDifference(folder, network="resnet51").metrics
    with pytest.raises(ModelError, match=r"these are no weights of .*resnet18|these are no weights of ResNet18"):
        LayerDifference(folder, network="resnet18", path=resnet50).predict(
            [np.zeros((64, 64, 3), np.uint8)] * 1, ["a"], [np.zeros((64, 64, 3), np.uint8)]
        )
