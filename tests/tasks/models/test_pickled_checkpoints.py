"""Checkpoints whose pickles run code: every loader refuses them, names the file and runs nothing."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from icmbench.codecs.diffusion.backbone.weights import read_state  # noqa: E402
from icmbench.harness.config import plugins  # noqa: E402

PICTURE = np.zeros((40, 40, 3), np.uint8)


class MakesFolder:
    """An object that makes the folder `marker` when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def plugin(kind, name):
    return plugins.load(kind, name, kind)


def dataset(folder):
    (folder / "photos").mkdir(exist_ok=True)
    Image.fromarray(PICTURE).save(folder / "photos" / "a.png")
    return plugin("datasets", "images")(folder / "photos")


def model(name, **options):
    return lambda file, folder: plugin("models", name)(path=file, **options)([PICTURE])


def task(name, **options):
    def load(file, folder):
        instance = plugin("tasks", name)(dataset(folder), path=file, **options)
        instance.ready = instance.context()
        instance.statistics(instance.predict([PICTURE], ["a.png"], [PICTURE]), [{}])

    return load


def codec(name, **options):
    return lambda file, folder: plugin("codecs", name)(weights=file, **options).compress(PICTURE)


# Each takes a checkpoint and an empty folder, and loads the checkpoint.
LOADERS = {
    "elic": codec("elic", point=0.016),
    # Diff-ICMH, ResULIC, SLIM, CADC, RAM++ and the backbones all load with this function.
    "diffusion": lambda file, folder: read_state(file),
    "torchvision-detector": model("torchvision-detector", architecture="ssdlite320_mobilenet_v3_large"),
    "torchvision-semantic": model("torchvision-semantic", architecture="lraspp_mobilenet_v3_large"),
    "torchvision-classifier": model("torchvision-classifier", architecture="mobilenet_v3_small"),
    "timm": model("timm", architecture="resnet10t"),
    "open-clip": lambda file, folder: plugin("models", "open-clip")(architecture="RN50", path=file).embed_images([PICTURE]),
    "distribution": lambda file, folder: plugin("tasks", "distribution")(dataset(folder), path=file).network,
    "dists": task("dists"),
    "lpips": task("lpips"),
    "layers": task("layers"),
}


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["zip", "pickle"])
@pytest.mark.parametrize("name", LOADERS)
def test_a_pickle_that_runs_code_is_refused(tmp_path, name, save):
    file = tmp_path / "checkpoint.pth"
    save({"state_dict": {"weight": MakesFolder(tmp_path / "marker")}}, file)
    with pytest.raises(Exception) as raised:
        LOADERS[name](file, tmp_path)
    assert not (tmp_path / "marker").exists()
    assert type(raised.value).__module__.startswith("icmbench."), repr(raised.value)
    assert "checkpoint.pth" in str(raised.value) and "\n" not in str(raised.value)


def test_a_transformers_folder_with_a_pickle_is_refused(tmp_path):
    pytest.importorskip("transformers")
    torch.save({"weight": MakesFolder(tmp_path / "marker")}, tmp_path / "pytorch_model.bin")
    config = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "depths": [1], "hidden_sizes": [8]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "embedding_size": 8, "layer_type": "basic"}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ConvNextImageProcessor"}))
    with pytest.raises(Exception) as raised:
        model("transformers-classifier")(tmp_path, tmp_path)
    assert not (tmp_path / "marker").exists()
    assert str(tmp_path) in str(raised.value), repr(raised.value)
