"""Text + Sketch with small random networks: what verify.py compares the adapter with. See codecs/adapters/text_sketch.py."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np


def prepare(folder: Path) -> dict:
    """All networks in the authors' classes, small where they let one choose, and settings of a short prompt inversion."""
    import torch
    from annotator.hed import Network
    from models_compressai import get_models
    from prompt_inversion import open_clip

    torch.manual_seed(1)
    sketch = get_models(Namespace(model_name="Cheng2020AttentionFull", orig_channels=1))
    with torch.no_grad():
        sketch.g_a[7].weight.mul_(4)  # Latents of an untrained network round to nothing but zeros.
    torch.save(sketch.state_dict(), Path(folder, "sketch_0.5.pt"))
    with mock.patch("torch.load", return_value={}), mock.patch.object(torch.nn.Module, "load_state_dict"):
        edges = Network("")
    weights = {key.replace("net", "module", 1): value for key, value in edges.state_dict().items()}
    torch.save(weights, Path(folder, "network-bsds500.pth"))
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), Path(folder, "clip.pt"))
    settings = json.loads(Path(open_clip.__file__).parents[1].joinpath("sample_config.json").read_text(encoding="utf-8"))
    settings.update(clip_model="ViT-S-32-alt", clip_pretrain=str(Path(folder, "clip.pt")), iter=3)
    Path(folder, "clip.json").write_text(json.dumps(settings), encoding="utf-8")
    _save_stable_diffusion(folder)
    files = {"sketch": "sketch_{point}.pt", "edges": "network-bsds500.pth", "clip": "clip.json"}
    options = {key: str(Path(folder, name)) for key, name in {**files, "stable_diffusion": "sd", "controlnet": "cn"}.items()}
    return {"point": 0.5, "options": {**options, "candidates": 2, "resolution": 256, "device": "cpu"}}


def _save_stable_diffusion(folder: Path) -> None:
    """Small networks in diffusers' layout. The vocabulary is one of single characters."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    words = [letter + end for end in ("", "</w>") for letter in bytes_to_unicode().values()]
    words += ["<|startoftext|>", "<|endoftext|>"]
    Path(folder, "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
    Path(folder, "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    ends = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8, sample_size=64, **ends
    )
    control = ControlNetModel.from_unet(unet)
    for parameter in control.parameters():
        torch.nn.init.normal_(parameter, std=0.05)  # Those that start at zero would switch the sketch off.
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=4, **levels)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(words), bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, **size))
    tokenizer = CLIPTokenizer(str(Path(folder, "vocab.json")), str(Path(folder, "merges.txt")), model_max_length=77)
    parts = (vae, text, tokenizer, unet, PNDMScheduler(skip_prk_steps=True), None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(Path(folder, "sd"))
    control.save_pretrained(Path(folder, "cn"))


def direct(folder: Path, image: np.ndarray) -> tuple:
    """The authors' `encode_rcc` and `recon_rcc`, in which "cuda" is replaced by the CPU: their strings, caption and picture."""
    import zlib

    import eval_PICS as script
    import torch
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UniPCMultistepScheduler

    torch.set_num_threads(1)
    settings = Namespace(**script.prompt_inv.read_json(Path(folder, "clip.json")))
    clip, _, preprocess = script.open_clip.create_model_and_transforms(settings.clip_model, pretrained=settings.clip_pretrain)
    control = ControlNetModel.from_pretrained(Path(folder, "cn"))
    model = StableDiffusionControlNetPipeline.from_pretrained(Path(folder, "sd"), controlnet=control)
    model.scheduler = UniPCMultistepScheduler.from_config(model.scheduler.config)
    network = script.models_compressai.get_models(Namespace(model_name="Cheng2020AttentionFull", orig_channels=1))
    network.load_state_dict(torch.load(Path(folder, "sketch_0.5.pt")))
    network.eval()
    network.update()

    generator, invert = torch.Generator, script.prompt_inv.optimize_prompt
    script.im, script.args_clip = script.resize_image(script.HWC3(image), 256), settings
    script.loss_func = lambda x, x_hat: 1 - script.prompt_inv.clip_cosine(x, x_hat, clip, preprocess, "cpu")
    with (
        mock.patch.object(torch, "Generator", lambda device: generator()),
        mock.patch.object(torch.nn.Module, "cuda", lambda self: self),
        mock.patch.object(torch.Tensor, "cuda", lambda self: self),
        mock.patch("annotator.hed.annotator_ckpts_path", str(folder)),
        mock.patch.object(script.prompt_inv, "optimize_prompt", lambda c, p, a, _, **images: invert(c, p, a, "cpu", **images)),
    ):
        torch.manual_seed(0)
        caption, _, sketch, index = script.encode_rcc(model, clip, preprocess, network, script.im, 2)
        picture, _ = script.recon_rcc(model, network, caption, sketch, index, 2)
    strings = b"".join(string[0] for string in sketch["strings"])
    return strings + zlib.compress(caption.encode()), np.asarray(picture)
