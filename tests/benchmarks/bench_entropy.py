"""The Gaussian conditional and the context models: symbols a second, size against the ideal and CompressAI's, portable streams.

    python tests/benchmarks/bench_entropy.py [--symbols 491520] [--repeats 5]

Seconds are CPU seconds of all threads, so that a busy machine matters little; the coder itself uses one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from icmbench.codecs import elic_model
from icmbench.codecs.entropy.coder import SymbolReader, SymbolWriter
from icmbench.codecs.entropy.hyperprior import HyperpriorCoder
from icmbench.codecs.entropy.models import SCALES, GaussianConditional, to_symbols


def best(run: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds."""
    return best_of({"": run}, repeats)[""]


def best_of(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least CPU seconds of each, taken in turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def coder(symbols: int, repeats: int) -> None:
    """From scales, means and latents to bytes and back; beside it CompressAI's module on its `ans`, where installed."""
    gaussian = GaussianConditional()
    gaussian.update()
    other = compressai_conditional()
    rng = np.random.default_rng(0)
    print(f"{'scales':>12} {'':10} {'encode':>9} {'decode':>9}  Msymbols/s   bytes, and above the ideal")
    for low, high in ((0.11, 1), (0.11, 256), (0.5, 20)):
        scales = torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(high), symbols))).float()
        means = torch.from_numpy(rng.normal(0, 5, symbols)).float()
        y = means + scales * torch.from_numpy(rng.normal(size=symbols)).float()
        expected = (y - means).round() + means

        def encode(scales: torch.Tensor = scales, means: torch.Tensor = means, y: torch.Tensor = y) -> bytes:
            writer = SymbolWriter()
            writer.write(to_symbols(y - means), gaussian.rows(scales), gaussian.tables)
            return writer.finish()

        def decode(data: bytes, scales: torch.Tensor = scales, means: torch.Tensor = means) -> torch.Tensor:
            reader = SymbolReader(data)
            symbols = reader.read(gaussian.rows(scales), gaussian.tables)
            reader.finish()
            return torch.from_numpy(symbols) + means

        data = encode()
        assert torch.equal(decode(data), expected)
        ideal = -torch.log2(gaussian.likelihood((y - means).round(), scales, torch.zeros_like(y)).double()).sum().item() / 8
        sizes = {"icmbench": len(data)}
        runs: dict[str, Callable[[], Any]] = {"icmbench encode": encode, "icmbench decode": lambda data=data: decode(data)}
        if other is not None:
            table, center, latents = scales[None], means[None], y[None]
            strings = other.compress(latents, other.build_indexes(table), center)
            assert torch.equal(other.decompress(strings, other.build_indexes(table), means=center)[0], expected)
            sizes["CompressAI"] = len(strings[0])
            runs["CompressAI encode"] = lambda t=table, c=center, y=latents: other.compress(y, other.build_indexes(t), c)
            runs["CompressAI decode"] = lambda t=table, c=center, s=strings: other.decompress(s, other.build_indexes(t), means=c)
        seconds = best_of(runs, repeats)
        for name, size in sizes.items():
            rates = [symbols / seconds[f"{name} {way}"] / 1e6 for way in ("encode", "decode")]
            above = f"{100 * size / ideal - 100:+.2f}%"
            print(f"{low:6} {high:5} {name:10} {rates[0]:9.1f} {rates[1]:9.1f}               {size} {above}")
        if other is not None:
            ways = {way: seconds[f"CompressAI {way}"] / seconds[f"icmbench {way}"] for way in ("encode", "decode")}
            print(f"{'':12} {ways['encode']:.1f} times as fast encoding, {ways['decode']:.1f} times decoding")


def compressai_conditional() -> Any:
    """CompressAI's module with the same table of scales; None where it is not installed."""
    try:
        from compressai.entropy_models import GaussianConditional as Conditional
    except ModuleNotFoundError:
        return None
    low, high, count = SCALES
    other = Conditional(None)
    other.update_scale_table(torch.exp(torch.linspace(np.log(low), np.log(high), count)))
    return other


def contexts(repeats: int) -> None:
    """ELIC's latents of a 768x512 image; encoding includes decoding its own stream."""
    for variant in ("official", "chandelier"):
        network = elic_model.synthetic(elic_model.ElicNetwork(variant))
        generator = torch.Generator().manual_seed(0)
        y = torch.randn(1, 320, 32, 48, generator=generator) / 2
        z = torch.randn(1, 192, 8, 12, generator=generator)
        for mode in ("default", "portable"):
            n = network
            latents = HyperpriorCoder(n.entropy_bottleneck, n.gaussian_conditional, n.h_s, n.context, mode)
            payload = latents.compress(y, z).payload
            encode = best(lambda coder=latents, y=y, z=z: coder.compress(y, z), repeats)
            decode = best(lambda coder=latents, payload=payload: coder.decompress(payload, 8, 12), repeats)
            print(f"ELIC {variant:10} {mode:8} encode {encode:.3f} s, decode {decode:.3f} s, {len(payload)} bytes")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=491_520)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    coder(options.symbols, options.repeats)
    contexts(options.repeats)


def test_entropy() -> None:
    main([])


if __name__ == "__main__":
    main()
