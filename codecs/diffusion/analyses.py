"""What the papers show of their codecs beside rates and distortions, as data frames for a report or a notebook.

bit_split         share of text and latents by rate         ResULIC, figure 10
bit_map           bits by position                          SLIM, figure 6
channel_energy    energy of the leading channels of l_T     CADC, figure 6
complexity        parameters, multiply-accumulates          SLIM, table 3
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from icmbench.codecs.base import Codec, CodecError, Image
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion.cadc_model import CadcDecoding
from icmbench.codecs.diffusion.codec import DiffusionCodec
from icmbench.codecs.diffusion.engine import CodecModel, Draft
from icmbench.codecs.diffusion.sampling import samplers


def bit_split(codecs: Sequence[Codec], images: Mapping[str, Image]) -> pd.DataFrame:
    """What the bits are spent on: a row for each codec point and part (header, z, y, text), in the codec's order.

    codecs: one for each point, all with `rate_breakdown`. images: by id, uint8 (H, W, 3). Columns: codec, point; part; bits, the
    mean of an image; bpp, all bits of the part over all pixels; total_bpp, likewise of all parts; share of the part in the bits
    without the header. CodecError for a codec that cannot split its bits.
    """
    rows: list[dict[str, Any]] = []
    pixels = sum(image.shape[0] * image.shape[1] for image in images.values())
    for codec in codecs:
        if not hasattr(codec, "rate_breakdown"):
            raise CodecError(f"{codec.name} does not say what its bits are spent on: it has no rate_breakdown")
        parts = pd.DataFrame([codec.rate_breakdown(stream) for _, stream in _streams(codec, images)]).sum()
        payload = parts.drop("header", errors="ignore").sum()
        rows += [
            {
                "codec": codec.name,
                "point": codec.point.label,
                "part": part,
                "bits": bits / len(images),
                "bpp": bits / pixels,
                "total_bpp": parts.sum() / pixels,
                "share": float("nan") if part == "header" else bits / payload,
            }
            for part, bits in parts.items()
        ]
    return pd.DataFrame(rows)


@torch.no_grad()
def bit_map(codec: DiffusionCodec, images: Mapping[str, Image]) -> pd.DataFrame:
    """Where the bits go: a row for each position of y and of z.

    Columns: codec, point, image; part, "y" or "z"; row, column; stride, pixels along a side of a position; bits, minus the binary
    logarithms of the likelihoods of its rounded symbols, summed over channels. Their sum is the payload but for what frequency
    tables and the coder lose: some percent, more for tiny streams. Positions of the padding are among them.
    """
    model, decoding = codec.networks()
    frames: list[pd.DataFrame] = []
    for image_id, image in images.items():
        pixels = model.pixels(image)
        ref = model.backbone.encode(pixels, decoding.tile, decoding.overlap) if model.latent.needs_latent else None
        _, likelihoods = model.latent(pixels, ref)
        for part in ("y", "z"):
            bits = -likelihoods[part][0].log2().sum(0).cpu().numpy()
            row, column = np.indices(bits.shape).reshape(2, -1)
            facts = {"codec": codec.name, "point": codec.point.label, "image": image_id, "part": part}
            values = {"row": row, "column": column, "stride": pixels.shape[-2] // bits.shape[0], "bits": bits.ravel()}
            frames.append(pd.DataFrame(facts | values))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def channel_energy(codecs: Sequence[DiffusionCodec], images: Mapping[str, Image], channels: int = 4) -> pd.DataFrame:
    """Energy of the leading channels of the decoded hint (CADC's l_T): a row for each codec point, image and channel.

    Energy is the variance over positions, without those of the padding. Columns: codec, point, bpp of the image's stream, image;
    channel, from 1; energy; share in the energy of all channels of the hint.
    """
    rows: list[dict[str, Any]] = []
    for codec in codecs:
        model, decoding = codec.networks()
        for image_id, stream in _streams(codec, images):
            container = Container.from_bytes(stream)
            size = (container.height, container.width)
            hint = Draft(model, decoding, "portable" if container.portable else "default", container.payload, size).hint
            energy = hint[0, :, : -(-size[0] // 8), : -(-size[1] // 8)].var((1, 2), correction=0).double().cpu()
            rows += [
                {
                    "codec": codec.name,
                    "point": codec.point.label,
                    "bpp": 8 * len(stream) / (size[0] * size[1]),
                    "image": image_id,
                    "channel": channel + 1,
                    "energy": float(energy[channel]),
                    "share": float(energy[channel] / energy.sum()),
                }
                for channel in range(channels)
            ]
    return pd.DataFrame(rows)


@torch.no_grad()
def complexity(codec: DiffusionCodec, height: int = 512, width: int = 512, prompt: str = "a photograph") -> pd.DataFrame:
    """Parameters and multiply-accumulates of coding one image: a row for each part of encoding and of decoding.

    Counted on the meta device: no weights are read, and the full profiles take seconds. Columns: codec, point, profile, height,
    width; stage, "encode" or "decode"; part; parameters that the part computes with; calls for an image; gmac, 10**9
    multiply-accumulates of convolutions, matrix products and attention in all calls, half of what FlopCounterMode counts.
    The entropy model is counted as training runs it: once in encoding, which also reads its stream back, and once in decoding.
    Not counted: captioners, taggers and masks, which are models of the user's choice. With classifier-free guidance, which needs a
    prompt, a call evaluates the UNet twice.
    """
    model, decoding = codec.networks(empty=True)
    latent, backbone = model.latent, model.backbone
    pad = latent.pad
    pixels = torch.empty(1, 3, -(-height // pad) * pad, -(-width // pad) * pad, device="meta")
    rows: list[dict[str, Any]] = []

    def part(stage: str, name: str, run: Callable[[], Any], calls: int = 1) -> Any:
        with _used() as parameters, FlopCounterMode(display=False) as counter:
            result = run()
        counts = {"parameters": sum(parameters.values()), "calls": calls, "gmac": calls * counter.get_total_flops() / 2e9}
        rows.append(
            {"codec": codec.name, "point": codec.point.label, "profile": backbone.profile.name}
            | {"height": height, "width": width, "stage": stage, "part": name}
            | counts
        )
        return result

    ref = part("encode", "VAE encoder", lambda: backbone.encode(pixels)) if latent.needs_latent else None
    y, z = part("encode", "analysis", lambda: latent.analyse(pixels, ref))
    part("encode", "entropy model", lambda: _entropy(model, y, z))
    part("decode", "entropy model", lambda: _entropy(model, y, z))
    hint = part("decode", "synthesis", lambda: model.hint(y, z))
    if isinstance(decoding, CadcDecoding) and decoding.captioner is not None:
        part("decode", "auxiliary decoder", lambda: model.preview(hint, decoding))
        decoding = replace(decoding, captioner=None)
    predict = part("decode", "text encoder and hint", lambda: model.predictor(hint, decoding, [prompt]))
    asked: list[tuple[Tensor, int]] = []

    def ask(x: Tensor, t: int) -> Tensor:
        asked.append((x, t))
        return hint[:, :4]

    noise = samplers.draw_noise([0], decoding.sampler.draws, *hint.shape[-2:]).to("meta")
    clean = decoding.sampler(ask, backbone.abar, hint, noise)
    if asked:
        part("decode", "UNet and control", lambda: predict(*asked[0]), len(asked))
    part("decode", "VAE decoder", lambda: backbone.decode(clean))
    return pd.DataFrame(rows)


def _streams(codec: Codec | DiffusionCodec, images: Mapping[str, Image]) -> Iterator[tuple[str, bytes]]:
    batch: Any = getattr(codec, "compress_batch", None)
    for image_id, image in images.items():
        yield image_id, batch([image], [image_id])[0] if batch else codec.compress(image)


def _entropy(model: CodecModel, y: Tensor, z: Tensor) -> None:
    latent = model.latent
    latent.entropy_bottleneck(z)
    latent.context(y, latent.hyper_dec(z), latent.gaussian_conditional)


@contextlib.contextmanager
def _used() -> Iterator[dict[int, int]]:
    """Collects the sizes of the parameters of all modules that are called meanwhile, by identity."""
    sizes: dict[int, int] = {}

    def see(module: nn.Module, inputs: Any) -> None:
        holders = [module, *(child for child in module.children() if isinstance(child, nn.ParameterList))]
        sizes.update({id(p): p.numel() for holder in holders for p in holder.parameters(recurse=False)})

    handle = nn.modules.module.register_module_forward_pre_hook(see)
    try:
        yield sizes
    finally:
        handle.remove()
