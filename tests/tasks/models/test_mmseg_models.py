"""The adapter for mmsegmentation against mmsegmentation's own test pipeline and network, on the same random weights."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mmseg")

if importlib.util.find_spec("mmcv._ext") is None:
    # mmcv-lite has no compiled operators. mmseg imports their wrappers, but the networks in these tests call none of them.
    class AbsentOperators(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def refuse(*_: Any, **__: Any) -> None:
                raise NotImplementedError(f"mmcv-lite has no {name}")

            return refuse

    sys.modules["mmcv._ext"] = absent = AbsentOperators("mmcv._ext")
    absent.__spec__ = ModuleSpec("mmcv._ext", None)

from mmengine.dataset import Compose  # noqa: E402
from mmseg.apis import init_model  # noqa: E402

from icmbench.tasks.models.errors import ModelError  # noqa: E402
from icmbench.tasks.models.mmseg_models import MMSegmenter, read_state  # noqa: E402

ZOO = "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512"


def write_narrow_upernet(folder: Path) -> Path:
    """A configuration file: the zoo's UPerNet for ADE20K with few channels and a small test size."""
    import mmseg

    base = Path(mmseg.__file__).parent / ".mim/configs/_base_"
    file = folder / "narrow_upernet.py"
    file.write_text(
        f"""
_base_ = ['{base}/models/upernet_r50.py', '{base}/datasets/ade20k.py', '{base}/default_runtime.py',
          '{base}/schedules/schedule_20k.py']
data_preprocessor = dict(size=(128, 128))
model = dict(
    data_preprocessor=data_preprocessor,
    pretrained=None,
    backbone=dict(depth=18, base_channels=16, norm_cfg=dict(type='SyncBN', requires_grad=True)),
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=32, num_classes=150),
    auxiliary_head=dict(in_channels=64, channels=16, num_classes=150),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 128), keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
"""
    )
    return file


def save_random_weights(config: Path | str, folder: Path) -> Path:
    torch.manual_seed(0)
    network = init_model(str(config), None, device="cpu")
    network.init_weights()
    with torch.no_grad():
        network.decode_head.conv_seg.weight.mul_(30)
    path = folder / "weights.pth"
    torch.save({"meta": {"CLASSES": ("a",)}, "state_dict": network.state_dict()}, path)
    return path


def expected_labels(config: str, path: Path, photo: Any) -> Any:
    """Label map of a photograph by mmsegmentation's own pipeline and network."""
    network = init_model(config, None, device="cpu")
    network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    steps = [dict(step) for step in network.cfg.test_pipeline if step["type"] != "LoadAnnotations"]
    data = Compose([{"type": "LoadImageFromNDArray"}, *steps[1:]])({"img": photo[:, :, ::-1]})
    with torch.no_grad():
        prepared = network.data_preprocessor({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
        return network.predict(prepared["inputs"], prepared["data_samples"])[0].pred_sem_seg.data[0].numpy()


def test_labels_of_a_configuration_file_equal_mmsegs(tmp_path: Path, photos: Any) -> None:
    config = write_narrow_upernet(tmp_path)
    path = save_random_weights(config, tmp_path)
    model = MMSegmenter(path, config=config, batch_size=1)
    for photo, labels in zip(photos[:2], model(photos[:2]), strict=True):
        assert labels.shape == photo.shape[:2] and labels.dtype == np.int32
        np.testing.assert_array_equal(labels, expected_labels(str(config), path, photo))
        assert len(np.unique(labels)) > 1
    assert (len(model.categories), model.categories[0], model.categories[149]) == (150, "wall", "flag")


def test_labels_of_a_zoo_configuration_equal_mmsegs(tmp_path: Path, photos: Any) -> None:
    import mmseg

    config = str(Path(mmseg.__file__).parent / f".mim/configs/{ZOO}.py")
    path = save_random_weights(config, tmp_path)
    model = MMSegmenter(path, zoo=ZOO)
    (labels,) = model(photos[:1])
    np.testing.assert_array_equal(labels, expected_labels(config, path, photos[0]))
    assert len(np.unique(labels)) > 1


def test_a_batch_of_mixed_shapes_equals_single_images(tmp_path: Path, photos: Any) -> None:
    config = write_narrow_upernet(tmp_path)
    path = save_random_weights(config, tmp_path)
    singles, batched = (MMSegmenter(path, config=config, batch_size=size)(photos) for size in (1, 4))
    for single, batch_member in zip(singles, batched, strict=True):
        assert (single == batch_member).mean() > 0.999


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    log = HistoryBuffer([1.0, 2.0], [1, 1])
    log.update(np.float64(3.0))
    path = tmp_path / "epoch_1.pth"
    checkpoint = {"state_dict": {"module.a": torch.ones(2)}, "meta": {"dataset_meta": {"classes": ("wall",)}}}
    torch.save({**checkpoint, "message_hub": {"log_scalars": {"train/loss": log}, "step": np.int64(4)}}, path)
    assert read_state(path)["a"].tolist() == [1, 1]

    class PrintsWhenLoaded:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    torch.save({**checkpoint, "message_hub": PrintsWhenLoaded()}, path)
    with pytest.raises(ModelError, match=r"epoch_1\.pth: this is no checkpoint of mmsegmentation; save its `state_dict` alone"):
        read_state(path)


def test_wrong_names_and_files_are_reported_in_one_sentence(tmp_path: Path, photos: Any) -> None:
    path = save_random_weights(write_narrow_upernet(tmp_path), tmp_path)
    with pytest.raises(ModelError, match="give either `zoo`"):
        MMSegmenter(path)
    with pytest.raises(ModelError, match=r"no configuration 'segformer/nothing'; known there: segformer_mit-b0"):
        _ = MMSegmenter(path, zoo="segformer/nothing").fingerprint
    with pytest.raises(ModelError, match=r"weights\.pth: these are no weights of this configuration \(size mismatch"):
        MMSegmenter(path, zoo=ZOO)(photos[:1])
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelError, match=r"weights\.pth: .* weights are not in this checkpoint, such as backbone"):
        MMSegmenter(path, zoo=ZOO)(photos[:1])


def test_the_fingerprint_holds_the_configuration_and_loads_no_network(tmp_path: Path) -> None:
    config = write_narrow_upernet(tmp_path)
    path = save_random_weights(config, tmp_path)
    before = MMSegmenter(path, config=config).fingerprint
    config.write_text(config.read_text().replace("(512, 128)", "(512, 160)"))
    changed = MMSegmenter(path, config=config)
    assert changed.fingerprint != before and "network" not in vars(changed)
