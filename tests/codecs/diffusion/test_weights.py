"""Published weights: every key is translated, damaged and foreign files are refused, and the files are found."""

import json
import pickle
import sys
import types
from itertools import product

import pytest
import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

from icmbench.codecs.base import CodecError
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import keys, weights
from icmbench.codecs.diffusion.backbone import stable_diffusion as backbones
from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.files import PublishedWeights, WeightFiles
from icmbench.codecs.diffusion.backbone.stable_diffusion import PROFILES, DiffusionBackbone
from icmbench.codecs.diffusion.latents.lfgcm import Lfgcm

COUNTER = iter(range(1, 1 << 30))


def numbered(*shape: int) -> torch.Tensor:
    """A tensor that differs from all others of this module."""
    return torch.full(shape, float(next(COUNTER)))


def original_vae() -> dict[str, torch.Tensor]:
    """Numbered tensors under the original names of Stable Diffusion's VAE."""
    layers = [f"{layer}.{kind}" for layer, kind in product(("norm1", "conv1", "norm2", "conv2"), ("weight", "bias"))]
    names = [f"{part}.{kind}" for part, kind in product(("quant_conv", "post_quant_conv"), ("weight", "bias"))]
    for side, levels, blocks in (("encoder", "down", 2), ("decoder", "up", 3)):
        names += [f"{side}.{layer}.{kind}" for layer, kind in product(("conv_in", "norm_out", "conv_out"), ("weight", "bias"))]
        names += [f"{side}.mid.block_{i}.{layer}" for i, layer in product((1, 2), layers)]
        names += [
            f"{side}.mid.attn_1.{layer}.{kind}" for layer, kind in product(("norm", "q", "k", "v", "proj_out"), ("weight", "bias"))
        ]
        names += [f"{side}.{levels}.{i}.block.{j}.{layer}" for i, j, layer in product(range(4), range(blocks), layers)]
        shortcuts = ((1, 0), (2, 0)) if side == "encoder" else ((1, 0), (0, 0))
        names += [f"{side}.{levels}.{i}.block.{j}.nin_shortcut.{kind}" for (i, j), kind in product(shortcuts, ("weight", "bias"))]
        moves = [(i, "downsample") for i in (0, 1, 2)] if side == "encoder" else [(i, "upsample") for i in (1, 2, 3)]
        names += [f"{side}.{levels}.{i}.{move}.conv.{kind}" for (i, move), kind in product(moves, ("weight", "bias"))]
    pointwise = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
    return {keys.VAE + name: numbered(3, 3, 1, 1) if name.endswith(pointwise) else numbered(1) for name in names}


def original_text() -> dict[str, torch.Tensor]:
    """Numbered tensors under the names of OpenCLIP's text encoder, with 24 layers of width 4."""
    names = ["positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"]
    layers = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    for block in range(24):
        prefix = f"transformer.resblocks.{block}"
        names += [f"{prefix}.{layer}.{kind}" for layer, kind in product(layers, ("weight", "bias"))]
    state = {keys.TEXT + name: numbered(4, 4) for name in names}
    for block in range(24):
        for kind, shape in (("weight", (12, 4)), ("bias", (12,))):
            values = numbered(*shape) + torch.arange(12).view(-1, *[1] * (len(shape) - 1))
            state[f"{keys.TEXT}transformer.resblocks.{block}.attn.in_proj_{kind}"] = values
    return state


def equal_states(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_vae_names_agree_with_diffusers():
    state = original_vae()
    ours, unknown = keys.rename_vae(state)
    assert not unknown
    theirs = single_file_utils.convert_ldm_vae_checkpoint(state, PROFILES["sd21"].vae)
    assert equal_states(ours, theirs)
    with init_empty_weights():
        full = DiffusionBackbone(PROFILES["sd21"])
    assert ours.keys() == full.vae.state_dict().keys()


def test_text_names_agree_with_diffusers():
    state = original_text()
    ours, unknown = keys.rename_text(state)
    assert not unknown
    theirs = single_file_utils.convert_open_clip_checkpoint(types.SimpleNamespace(config=types.SimpleNamespace()), state)
    theirs = {key.removeprefix("text_model."): value for key, value in theirs.items() if not key.startswith("text_projection")}
    assert equal_states(ours, theirs)
    with init_empty_weights():
        full = DiffusionBackbone(PROFILES["sd21"])
    assert ours.keys() == full.text.state_dict().keys()


def test_published_keys_fill_every_part(shared):
    """The keys of the published layout fill all parameters of the networks, with the right shapes."""
    layout = json.loads((shared / "conformance" / "diff_icmh_keys.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    assert not keys.foreign_keys(state)
    with init_empty_weights():
        full = DiffusionBackbone(PROFILES["sd21"])
        parts = {"unet": full.unet, "control": ControlModule(full.unet), "latent": Lfgcm()}
    for part, module in parts.items():
        weights.fill_part(module, part, state, "the layout")
    names = {key: torch.ones(1) * index for index, key in enumerate(layout) if key.startswith(keys.UNET)}
    theirs = single_file_utils.convert_ldm_unet_checkpoint(dict(names), full.unet.config)
    assert equal_states(keys.rename_unet(names)[0], theirs)


def test_injection_strengths_are_multiplied_into_the_weights():
    state = {f"{keys.CONTROL}enc_zero_convs_out.{i}.0.{kind}": torch.ones(1) for i in range(12) for kind in ("weight", "bias")}
    state |= {f"{keys.CONTROL}dec_zero_convs_out.{i}.0.{kind}": torch.ones(1) for i in range(12) for kind in ("weight", "bias")}
    state |= {f"{keys.CONTROL}middle_block_out.0.{kind}": torch.ones(1) for kind in ("weight", "bias")}
    renamed, unknown = keys.rename_control(state | {keys.CONTROL + "scale_list": torch.arange(25.0)})
    assert not unknown
    assert renamed["encoder_out.11.weight"] == 11
    assert renamed["middle_out.bias"] == 12
    assert renamed["decoder_out.0.weight"] == 13
    assert renamed["decoder_out.11.bias"] == 24


@pytest.fixture
def lightning(monkeypatch):
    """A function that fakes a class of a training framework; the framework can be removed before a checkpoint is read."""

    def build(module: str, name: str) -> type:
        fake_class = type(name, (dict,) if name == "AttributeDict" else (), {"__module__": module})
        for depth in range(1, module.count(".") + 2):
            package = ".".join(module.split(".")[:depth])
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        setattr(sys.modules[module], name, fake_class)
        return fake_class

    return build


def test_lightning_checkpoint(lightning, monkeypatch, tmp_path):
    callback = lightning("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    parameters = lightning("pytorch_lightning.utilities.parsing", "AttributeDict")(lr=0.1)
    state = callback()
    state.best = 3
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: {"best": state}}, "hyper_parameters": parameters}
    torch.save(content, tmp_path / "model.ckpt")
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    assert torch.equal(weights.read_state(tmp_path / "model.ckpt")["a"], torch.ones(2))


class Evil:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_checkpoints_run_nothing(tmp_path, capsys):
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(CodecError, match=r"evil.ckpt cannot be read as weights"):
        weights.read_state(tmp_path / "evil.ckpt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps({"state_dict": 3})])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_damaged_files(tmp_path, content, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CodecError, match=r"model\."):
        weights.read_state(path)


def test_keys_and_shapes_that_do_not_fit_are_listed(model, weights_folder, tmp_path):
    state = weights.read_state(weights_folder / "diff-icmh-lambda2.safetensors")
    del state["control.middle_out.bias"]
    state["control.middle_out.extra"] = torch.ones(1)
    state["latent.f_c.0.bias"] = torch.ones(1)
    save_file(state, tmp_path / "changed.safetensors")
    files = WeightFiles("diff-icmh", "tiny", tmp_path / "changed.safetensors", str(weights_folder / "backbone.safetensors"))
    with pytest.raises(CodecError) as caught:
        models.load_model(models.DIFF_ICMH, files, 2, "float32", "cpu")
    for problem in (
        "1 missing: control.middle_out.bias",
        "1 left over: control.middle_out.extra",
        "latent.f_c.0.bias (1,) instead of (8,)",
    ):
        assert problem in str(caught.value)


def test_checkpoint_over_another_backbone_is_refused(backbone):
    """If a checkpoint includes Stable Diffusion, it must be the one that was loaded."""
    state = {f"{keys.UNET}out.2.bias": backbone.unet.conv_out.bias.clone()}
    models._check_backbone(backbone, state, "model.ckpt")
    state[f"{keys.UNET}out.2.bias"] += 1
    with pytest.raises(CodecError, match=r"another Stable Diffusion .*conv_out.bias"):
        models._check_backbone(backbone, state, "model.ckpt")


def test_own_weights_round_trip(model, weights_folder):
    files = WeightFiles("diff-icmh", "tiny", weights_folder, None)
    loaded = models.load_model(models.DIFF_ICMH, files, 2, "float32", "cpu")
    assert loaded.digest == model.digest
    for ours, theirs in ((loaded.control, model.control), (loaded.latent, model.latent), (loaded.backbone, model.backbone)):
        assert equal_states(dict(ours.state_dict()), dict(theirs.state_dict()))
    other_point = models.load_model(models.DIFF_ICMH, files, 4, "float32", "cpu")
    assert other_point is not loaded
    assert other_point.backbone is loaded.backbone


def test_backbone_from_a_diffusers_folder(backbone, tmp_path):
    for name, folder in (("unet", "unet"), ("vae", "vae"), ("text", "text_encoder")):
        getattr(backbone, name).save_pretrained(tmp_path / folder)
    loaded = backbones.load_backbone("tiny", tmp_path, torch.float32, "cpu")
    assert equal_states(dict(loaded.state_dict()), dict(backbone.state_dict()))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    backbones.load_backbone.cache_clear()
    with pytest.raises(CodecError, match=r"predicts velocity"):
        backbones.load_backbone("tiny", tmp_path, torch.float32, "cpu")


def test_where_files_are_searched(monkeypatch, tmp_path):
    monkeypatch.setattr("icmbench.codecs.diffusion.backbone.files.PRETRAINED", tmp_path / "empty")
    published = PublishedWeights("someone/codec", "top/point{point}/model.ckpt")
    files = WeightFiles("diff-icmh", "sd21", tmp_path, None, published)
    with pytest.raises(CodecError, match=r"diff-icmh-lambda4.safetensors or top/point4/model.ckpt or point4/model.ckpt"):
        files.point_file(4)
    (tmp_path / "point4").mkdir()
    (tmp_path / "point4" / "model.ckpt").touch()
    assert files.point_file(4) == tmp_path / "point4" / "model.ckpt"
    assert WeightFiles("diff-icmh", "sd21", tmp_path / "one.ckpt", None).point_file(4) == tmp_path / "one.ckpt"
    assert WeightFiles("diff-icmh", "sd21", "random", None).required_files(4) == []
    with pytest.raises(CodecError, match=r"put backbone.safetensors beside its weights"):
        WeightFiles("diff-icmh", "tiny", tmp_path, None).backbone_source()


def test_unreachable_hub_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CodecError) as caught:
        DiffIcmh(2, device="cpu")
    assert "difficmh_models/CNscale1.0_1_1_2_2_WTagGCM_bs16x1_lr0.00005_cfg7.0/model.ckpt of" in str(caught.value)
    assert "set `weights` to that folder" in str(caught.value)
    (tmp_path / "model.ckpt").touch()
    for backbone, content in ((None, "v2-1_512-ema-pruned.ckpt"), ("someone/stable-diffusion", "unet, vae, text_encoder")):
        with pytest.raises(CodecError, match=rf"{content}.*set `backbone` to its path"):
            DiffIcmh(2, device="cpu", weights=tmp_path / "model.ckpt", backbone=backbone)
