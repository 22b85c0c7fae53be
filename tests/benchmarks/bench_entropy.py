"""The Gaussian conditional and the context models: symbols per second, and sizes against the ideal and against CompressAI's.

    python tests/benchmarks/bench_entropy.py [--symbols 491520] [--repeats 5]

Seconds are CPU seconds of all threads, so a busy machine matters little; the coder itself uses one thread.
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


def least_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Run something several times; return the least CPU seconds."""
    return least_seconds_in_turns({"": run}, repeats)[""]


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


def measure_contexts(repeats: int) -> None:
    """Code ELIC's latents of a 768x512 image; encoding includes decoding its own stream."""
    for variant in ("official", "chandelier"):
        network = elic_model.fill_synthetic(elic_model.ElicNetwork(variant))
        generator = torch.Generator().manual_seed(0)
        y = torch.randn(1, 320, 32, 48, generator=generator) / 2
        z = torch.randn(1, 192, 8, 12, generator=generator)
        for mode in ("default", "portable"):
            n = network
            latents = HyperpriorCoder(n.entropy_bottleneck, n.gaussian_conditional, n.h_s, n.context, mode)
            payload = latents.compress(y, z).payload
            encode = least_seconds(lambda coder=latents, y=y, z=z: coder.compress(y, z), repeats)
            decode = least_seconds(lambda coder=latents, payload=payload: coder.decompress(payload, 8, 12), repeats)
            print(f"ELIC {variant:10} {mode:8} encode {encode:.3f} s, decode {decode:.3f} s, {len(payload)} bytes")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=491_520)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    measure_gaussian(options.symbols, options.repeats)
    measure_contexts(options.repeats)


def test_entropy() -> None:
    main([])


if __name__ == "__main__":
    main()
