"""The Gaussian conditional and the context models: symbols a second, size against the ideal, the price of portable streams.

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
from icmbench.codecs.entropy.models import GaussianConditional, to_symbols


def best(run: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def coder(symbols: int, repeats: int) -> None:
    """From scales, means and latents to bytes and back."""
    gaussian = GaussianConditional()
    gaussian.update()
    rng = np.random.default_rng(0)
    print(f"{'scales':>12} {'encode':>9} {'decode':>9}  Msymbols/s   bytes, and above the ideal")
    for low, high in ((0.11, 1), (0.11, 256), (0.5, 20)):
        scales = torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(high), symbols))).float()
        means = torch.from_numpy(rng.normal(0, 5, symbols)).float()
        y = means + scales * torch.from_numpy(rng.normal(size=symbols)).float()

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
        assert torch.equal(decode(data), (y - means).round() + means)
        ideal = -torch.log2(gaussian.likelihood((y - means).round(), scales, torch.zeros_like(y)).double()).sum().item() / 8
        rates = [symbols / best(run, repeats) / 1e6 for run in (encode, lambda data=data: decode(data))]
        print(f"{low:6} {high:5} {rates[0]:9.1f} {rates[1]:9.1f}               {len(data)} {100 * len(data) / ideal - 100:+.2f}%")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=491_520)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    coder(options.symbols, options.repeats)
    contexts(options.repeats)


if __name__ == "__main__":
    main()
