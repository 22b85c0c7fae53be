"""Analyses that the papers show of their codecs besides rate and distortion, as data frames for a report or a notebook.

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
from icmbench.codecs.diffusion.engine import CodecModel, LatentDraft
from icmbench.codecs.diffusion.sampling import samplers


def bit_split(codecs: Sequence[Codec], images: Mapping[str, Image]) -> pd.DataFrame:
    """Measure what the bits of the streams are spent on.

    Args:
        codecs: One codec for each rate point; all have `rate_breakdown`.
        images: Image id to image, uint8 (H, W, 3).

    Returns:
        One row per codec, point and part of the stream (header, z, y, text; as the codec names and orders them). Columns: codec;
        point; part; bits, the mean per image; bpp, bits of the part in all streams per pixel of all images; total_bpp, the same
        ratio for all parts together; share, bits of the part per bit of the streams without headers (NaN for the header).

    Raises:
        CodecError: a codec has no `rate_breakdown`.
    """
    rows: list[dict[str, Any]] = []
    pixels = sum(image.shape[0] * image.shape[1] for image in images.values())
    for codec in codecs:
        if not hasattr(codec, "rate_breakdown"):
            raise CodecError(f"{codec.name} does not say what its bits are spent on: it has no rate_breakdown")
        bits_by_part = pd.DataFrame([codec.rate_breakdown(stream) for _, stream in _streams(codec, images)]).sum()
        payload = bits_by_part.drop("header", errors="ignore").sum()
        rows += [
            {
                "codec": codec.name,
                "point": codec.point.label,
                "part": part,
                "bits": bits / len(images),
                "bpp": bits / pixels,
                "total_bpp": bits_by_part.sum() / pixels,
                "share": float("nan") if part == "header" else bits / payload,
            }
            for part, bits in bits_by_part.items()
        ]
    return pd.DataFrame(rows)


@torch.no_grad()
def bit_map(codec: DiffusionCodec, images: Mapping[str, Image]) -> pd.DataFrame:
    """Measure at which positions of the latents the bits are spent.

    The sum of all bits is the length of the payload, except for what the quantised frequency tables and the arithmetic coder
    lose: some percent, more for tiny streams.

    Args:
        codec: A codec of the diffusion family.
        images: Image id to image, uint8 (H, W, 3).

    Returns:
        One row per image and position of y and of z, positions in the padding included. Columns: codec; point; image; part, "y"
        or "z"; row; column; stride, side of a position in pixels; bits, minus the binary logarithm of the likelihood of the
        rounded symbols at that position, summed over channels.
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
            labels = {"codec": codec.name, "point": codec.point.label, "image": image_id, "part": part}
            values = {"row": row, "column": column, "stride": pixels.shape[-2] // bits.shape[0], "bits": bits.ravel()}
            frames.append(pd.DataFrame(labels | values))
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def channel_energy(codecs: Sequence[DiffusionCodec], images: Mapping[str, Image], channels: int = 4) -> pd.DataFrame:
    """Measure the energy of the leading channels of the decoded hint (CADC's l_T).

    Args:
        codecs: One codec of the diffusion family for each rate point.
        images: Image id to image, uint8 (H, W, 3).
        channels: How many leading channels to list.

    Returns:
        One row per codec, point, image and channel. Columns: codec; point; bpp of the image's stream; image; channel, from 1;
        energy, the variance over positions outside the padding; share of the channel in the energy of all channels of the hint.
    """
    rows: list[dict[str, Any]] = []
    for codec in codecs:
        model, decoding = codec.networks()
        for image_id, stream in _streams(codec, images):
            container = Container.from_bytes(stream)
            size = (container.height, container.width)
            hint = LatentDraft(model, decoding, "portable" if container.portable else "default", container.payload, size).hint
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
    """Count the parameters and multiply-accumulates of encoding and decoding one image.

    The count runs on the meta device: no weights are read, and the full profiles take seconds. The entropy model is counted as
    training runs it: once in decoding and once in encoding, although an encoder also reads its own stream back. Captioners,
    taggers and mask models are not counted, because the user chooses them. With classifier-free guidance, which needs a prompt,
    each call evaluates the UNet twice.

    Args:
        codec: A codec of the diffusion family.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        prompt: Text that the decoder is conditioned on.

    Returns:
        One row per part of encoding and of decoding. Columns: codec; point; profile; height; width; stage, "encode" or "decode";
        part; parameters that the part computes with; calls per image; gmac, 10**9 multiply-accumulates of the convolutions,
        matrix products and attention in all calls (half of what FlopCounterMode counts).
    """
    model, decoding = codec.networks(empty=True)
    latent, backbone = model.latent, model.backbone
    pad = latent.pad
    pixels = torch.empty(1, 3, -(-height // pad) * pad, -(-width // pad) * pad, device="meta")
    labels = {"codec": codec.name, "point": codec.point.label, "profile": backbone.profile.name, "height": height, "width": width}
    count = _PartCounter(labels)
    ref = count("encode", "VAE encoder", lambda: backbone.encode(pixels)) if latent.needs_latent else None
    y, z = count("encode", "analysis", lambda: latent.analyse(pixels, ref))
    count("encode", "entropy model", lambda: _run_entropy_model(model, y, z))
    count("decode", "entropy model", lambda: _run_entropy_model(model, y, z))
    hint = count("decode", "synthesis", lambda: model.hint(y, z))
    if isinstance(decoding, CadcDecoding) and decoding.captioner is not None:
        count("decode", "auxiliary decoder", lambda: model.preview(hint, decoding))
        decoding = replace(decoding, captioner=None)
    predict = count("decode", "text encoder and hint", lambda: model.predictor(hint, decoding, [prompt]))
    calls: list[tuple[Tensor, int]] = []

    def record_call(x: Tensor, t: int) -> Tensor:
        calls.append((x, t))
        return hint[:, :4]

    noise = samplers.draw_noise([0], decoding.sampler.draws, *hint.shape[-2:]).to("meta")
    clean = decoding.sampler(record_call, backbone.abar, hint, noise)
    if calls:
        count("decode", "UNet and control", lambda: predict(*calls[0]), len(calls))
    count("decode", "VAE decoder", lambda: backbone.decode(clean))
    return pd.DataFrame(count.rows)


class _PartCounter:
    """Runs one part of a codec after another and notes what each costs.

    Args:
        labels: The columns that all rows share.

    Attributes:
        rows: One row per part, for a data frame.
    """

    def __init__(self, labels: Mapping[str, Any]) -> None:
        self._labels = labels
        self.rows: list[dict[str, Any]] = []

    def __call__(self, stage: str, part: str, run: Callable[[], Any], calls: int = 1) -> Any:
        """Run a part once, add a row for `calls` runs of it, and return its result."""
        with _used_parameters() as parameters, FlopCounterMode(display=False) as counter:
            result = run()
        counts = {"parameters": sum(parameters.values()), "calls": calls, "gmac": calls * counter.get_total_flops() / 2e9}
        self.rows.append({**self._labels, "stage": stage, "part": part} | counts)
        return result


def _streams(codec: Codec | DiffusionCodec, images: Mapping[str, Image]) -> Iterator[tuple[str, bytes]]:
    """Yield the id and the stream of each image."""
    compress_batch: Any = getattr(codec, "compress_batch", None)
    for image_id, image in images.items():
        yield image_id, compress_batch([image], [image_id])[0] if compress_batch else codec.compress(image)


def _run_entropy_model(model: CodecModel, y: Tensor, z: Tensor) -> None:
    latent = model.latent
    latent.entropy_bottleneck(z)
    latent.context(y, latent.hyper_dec(z), latent.gaussian_conditional)


@contextlib.contextmanager
def _used_parameters() -> Iterator[dict[int, int]]:
    """Collect the parameters of all modules that run inside this context, as a map of object id to number of elements."""
    sizes: dict[int, int] = {}

    def add_parameters(module: nn.Module, inputs: Any) -> None:
        holders = [module, *(child for child in module.children() if isinstance(child, nn.ParameterList))]
        sizes.update({id(p): p.numel() for holder in holders for p in holder.parameters(recurse=False)})

    handle = nn.modules.module.register_module_forward_pre_hook(add_parameters)
    try:
        yield sizes
    finally:
        handle.remove()
