"""The Gaussian conditional: symbols per second, and sizes against the ideal and against CompressAI's. The portable mode: its time
against the default's, for the entropy cores alone, for ELIC and for the latent compressors of the diffusion codecs, at full size.

    python tests/benchmarks/bench_entropy.py [--symbols 491520] [--repeats 5] [--photo PHOTO]

Seconds are CPU seconds of all threads, so a busy machine matters little; the coder itself uses one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from icmbench.codecs import elic_model
from icmbench.codecs.diffusion.latents.cadc_compressor import CadcCompressor
from icmbench.codecs.diffusion.latents.lfgcm import Lfgcm
from icmbench.codecs.diffusion.latents.vae_compressor import VaeCompressor
from icmbench.codecs.elic import Elic
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter
from icmbench.codecs.entropy.hyperprior import HyperpriorCoder
from icmbench.codecs.entropy.models import SCALES, GaussianConditional, to_symbols


def least_seconds_in_turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Run each alternative in turns; return the least CPU seconds of each."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def measure_gaussian(symbols: int, repeats: int) -> None:
    """Code latents with given scales and means to bytes and back; compare with CompressAI's module and its coder, if installed."""
    gaussian = GaussianConditional()
    gaussian.update()
    compressai = compressai_conditional()
    rng = np.random.default_rng(0)
    print(f"{'scales':>12} {'':10} {'encode':>9} {'decode':>9}  Msymbols/s   bytes, and above the ideal")
    for low, high in ((0.11, 1), (0.11, 256), (0.5, 20)):
        scales = torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(high), symbols))).float()
        means = torch.from_numpy(rng.normal(0, 5, symbols)).float()
        y = means + scales * torch.from_numpy(rng.normal(size=symbols)).float()
        expected = (y - means).round() + means

        def encode(scales: torch.Tensor = scales, means: torch.Tensor = means, y: torch.Tensor = y) -> bytes:
            writer = SymbolWriter()
            writer.write(to_symbols(y - means), gaussian.table_rows(scales), gaussian.tables)
            return writer.finish()

        def decode(data: bytes, scales: torch.Tensor = scales, means: torch.Tensor = means) -> torch.Tensor:
            reader = SymbolReader(data)
            symbols = reader.read(gaussian.table_rows(scales), gaussian.tables)
            reader.finish()
            return torch.from_numpy(symbols) + means

        data = encode()
        assert torch.equal(decode(data), expected)
        ideal = -torch.log2(gaussian.likelihood((y - means).round(), scales, torch.zeros_like(y)).double()).sum().item() / 8
        sizes = {"icmbench": len(data)}
        runs: dict[str, Callable[[], Any]] = {"icmbench encode": encode, "icmbench decode": lambda data=data: decode(data)}
        if compressai is not None:
            table, center, latents = scales[None], means[None], y[None]
            strings = compressai.compress(latents, compressai.build_indexes(table), center)
            assert torch.equal(compressai.decompress(strings, compressai.build_indexes(table), means=center)[0], expected)
            sizes["CompressAI"] = len(strings[0])
            runs["CompressAI encode"] = lambda t=table, c=center, y=latents: compressai.compress(y, compressai.build_indexes(t), c)
            runs["CompressAI decode"] = lambda t=table, c=center, s=strings: compressai.decompress(
                s, compressai.build_indexes(t), means=c
            )
        seconds = least_seconds_in_turns(runs, repeats)
        for name, size in sizes.items():
            rates = [symbols / seconds[f"{name} {direction}"] / 1e6 for direction in ("encode", "decode")]
            above = f"{100 * size / ideal - 100:+.2f}%"
            print(f"{low:6} {high:5} {name:10} {rates[0]:9.1f} {rates[1]:9.1f}               {size} {above}")
        if compressai is not None:
            encode_ratio, decode_ratio = (
                seconds[f"CompressAI {step}"] / seconds[f"icmbench {step}"] for step in ("encode", "decode")
            )
            print(f"{'':12} {encode_ratio:.1f} times as fast encoding, {decode_ratio:.1f} times decoding")


def compressai_conditional() -> Any:
    """CompressAI's module with the same table of scales; None if it is not installed."""
    try:
        from compressai.entropy_models import GaussianConditional as CompressaiConditional
    except ModuleNotFoundError:
        return None
    low, high, count = SCALES
    conditional = CompressaiConditional(None)
    conditional.update_scale_table(torch.exp(torch.linspace(np.log(low), np.log(high), count)))
    return conditional


def print_mode_ratios(name: str, runs: dict[str, dict[str, Callable[[], Any]]], repeats: int) -> None:
    """Print the median CPU seconds of each task in both modes, taken in turns, and their ratio.

    Args:
        name: What is measured.
        runs: For each mode, the tasks by name.
        repeats: How often each is run.
    """
    seconds: dict[tuple[str, str], list[float]] = {(task, mode): [] for task in runs["default"] for mode in runs}
    for _ in range(repeats):
        for (task, mode), times in seconds.items():
            start = time.process_time()
            runs[mode][task]()
            times.append(time.process_time() - start)
    for task in runs["default"]:
        default, portable = (statistics.median(seconds[task, mode]) for mode in ("default", "portable"))
        print(f"{name:24} {task:22} default {default:6.3f} s  portable {portable:6.3f} s  {portable / default:5.2f} times")


def measure_elic(photo: Path, repeats: int) -> None:
    """ELIC with synthetic weights on a photograph. Encoding is that of an image of a size that was encoded before."""
    image = np.asarray(Image.open(photo).convert("RGB"))
    for variant in ("official", "chandelier"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "elic.safetensors"
            elic_model.save_network(elic_model.fill_synthetic(elic_model.ElicNetwork(variant)), path)
            codecs = {mode: Elic("synthetic", weights=path, mode=mode) for mode in ("default", "portable")}
        runs = {}
        for mode, codec in codecs.items():
            stream = codec.compress(image)
            runs[mode] = {"encode": partial(codec.compress, image), "decode": partial(codec.decompress, stream)}
        print_mode_ratios(f"ELIC {variant}", runs, repeats)
        measure_core(f"ELIC {variant}", elic_model.fill_synthetic(elic_model.ElicNetwork(variant)), repeats)


def measure_core(name: str, network: elic_model.ElicNetwork, repeats: int) -> None:
    """The entropy core on synthetic latents of a 768x512 image, without the transforms."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(1, 320, 32, 48, generator=generator) / 2
    z = torch.randn(1, 192, 8, 12, generator=generator)
    runs = {}
    for mode in ("default", "portable"):
        coder = HyperpriorCoder(network.entropy_bottleneck, network.gaussian_conditional, network.h_s, network.context, mode)
        payload = coder.compress(y, z).payload
        runs[mode] = {"encode, core": partial(coder.compress, y, z), "decode, core": partial(coder.decompress, payload, 8, 12)}
    print_mode_ratios(name, runs, repeats)


@torch.no_grad()
def measure_compressors(photo: Path, repeats: int) -> None:
    """The diffusion codecs' latent compressors with random weights: analysis and coding, decoding and hint; and coding alone."""
    pixels = torch.from_numpy(np.array(Image.open(photo).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    height, width = (side // 256 * 256 for side in pixels.shape[2:])
    pixels = pixels[:, :, :height, :width]
    latent = 2 * torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(1))
    for make in (VaeCompressor, Lfgcm, CadcCompressor):
        torch.manual_seed(0)
        network = make().eval()
        network.update()
        y, z = network.analyse(pixels, latent)
        y, z = y / y.std(), z / z.std()  # Untrained networks give latents that would all be zero.
        runs = {}
        for mode in ("default", "portable"):
            coder = network.coder(mode)
            payload = coder.compress(y, z).payload
            runs[mode] = compressor_runs(network, coder, (pixels, latent), (y, z), payload)
        print_mode_ratios(make.__name__, runs, repeats)


def compressor_runs(
    network: Any, coder: HyperpriorCoder, inputs: tuple[Any, Any], latents: tuple[Any, Any], payload: bytes
) -> dict[str, Callable[[], Any]]:
    """The tasks of a compressor in one mode. `latents` are coded in place of those of the untrained analysis."""
    size = latents[1].shape[-2:]

    def encode() -> None:
        network.analyse(*inputs)
        coder.compress(*latents)

    def decode() -> None:
        decoded = coder.decompress(payload, *size)
        network.hint(decoded.y_hat, decoded.z_hat)

    cores = {"encode, core": partial(coder.compress, *latents), "decode, core": partial(coder.decompress, payload, *size)}
    return {"encode": encode, "decode": decode, **cores}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=491_520)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photo", type=Path, help="a photograph for the comparison of the modes, which is left out without it")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    measure_gaussian(options.symbols, options.repeats)
    if options.photo is not None:
        measure_elic(options.photo, options.repeats)
        measure_compressors(options.photo, options.repeats)


def test_entropy(shared: Path) -> None:
    main(["--photo", str(shared / "data" / "kodak" / "kodim03.png")])


if __name__ == "__main__":
    main()
