"""ELIC against CompressAI's on one photograph with the same weights: seconds, bytes, and differences of the networks' outputs.

    python tests/benchmarks/bench_elic.py PHOTO [--variant official] [--threads 2] [--repeats 5] [--portable]

Needs compressai 1.2.8. The two run in turns, and the fastest repetition counts, so a busy machine disturbs both alike. CPU seconds
are summed over all threads; without OMP_WAIT_POLICY=passive, waiting threads consume them too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from icmbench.codecs import elic_model
from icmbench.codecs.elic import Elic
from icmbench.codecs.entropy.hyperprior import HyperpriorCoder


def compressai_elic(variant: str, network: elic_model.ElicNetwork) -> Any:
    """CompressAI's network of a variant, with the weights of ours."""
    from compressai.models.sensetime import Elic2022Chandelier, Elic2022Official

    model_class = Elic2022Official if variant == "official" else Elic2022Chandelier
    model = model_class(network.n, network.m, list(network.context.slices)).eval()
    ours = network.state_dict()
    theirs = {key: model.state_dict()[key] for key in model.state_dict()}
    for our_key, their_key in elic_model.rename_keys({key: key for key in theirs}).items():
        if our_key in ours and ours[our_key].shape == theirs[their_key].shape:
            theirs[their_key].copy_(ours[our_key])
    model.update(force=True)
    return model


def least_seconds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Run each alternative in turns; return the least wall and CPU seconds of each."""
    seconds = {name: (float("inf"), float("inf")) for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - start[0], time.process_time() - start[1]
            seconds[name] = min(seconds[name][0], spent[0]), min(seconds[name][1], spent[1])
    return seconds


@torch.no_grad()
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--variant", default="official", choices=["official", "chandelier"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--portable", action="store_true")
    options = parser.parse_args(words)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)

    theirs = compressai_elic(options.variant, elic_model.fill_synthetic(elic_model.ElicNetwork(options.variant)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "elic.pth"
        torch.save(theirs.state_dict(), path)
        ours = Elic("synthetic", weights=path)
        bf16 = Elic("synthetic", weights=path, dtype="bfloat16")
        portable = Elic("synthetic", weights=path, mode="portable")

    image = np.asarray(Image.open(options.photo).convert("RGB"))
    height, width = (side // 64 * 64 for side in image.shape[:2])
    image = np.ascontiguousarray(image[:height, :width])
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    network = elic_model.ElicNetwork.from_state_dict(theirs.state_dict())
    a, b = network(x), theirs(x)
    y = theirs.g_a(x)
    for name, p, q in (
        ("x_hat", a["x_hat"], b["x_hat"]),
        ("y", network.g_a(x), y),
        *((f"likelihoods {part}", a["likelihoods"][part], b["likelihoods"][part]) for part in "yz"),
    ):
        difference = (p - q).abs()
        print(f"{name}: max|a-b|/max|b| {difference.max() / q.abs().max():.1e}; {(difference > 1e-3 * q.abs().max()).sum()} ties")

    coder = HyperpriorCoder(network.entropy_bottleneck, network.gaussian_conditional, network.h_s, network.context)
    stream, bf16_stream, coded = ours.compress(image), bf16.compress(image), theirs.compress(x)
    latents, z = coder.compress(y, network.h_a(y)), network.h_a(y)
    runs: dict[str, Callable[[], Any]] = {
        "CompressAI encode": lambda: theirs.compress(x),
        "ours encode": lambda: ours.compress(image),
        "ours encode bf16": lambda: bf16.compress(image),
        "CompressAI decode": lambda: theirs.decompress(coded["strings"], coded["shape"]),
        "ours decode": lambda: ours.decompress(stream),
        "ours decode bf16": lambda: bf16.decompress(bf16_stream),
        "CompressAI encode, entropy part": lambda: theirs.latent_codec.compress(y),
        "ours encode, entropy part": lambda: coder.compress(y, network.h_a(y)),
        "CompressAI decode, entropy part": lambda: theirs.latent_codec.decompress(coded["strings"], coded["shape"]),
        "ours decode, entropy part": lambda: coder.decompress(latents.payload, *z.shape[-2:]),
    }
    if options.portable:
        portable_stream = portable.compress(image)
        runs["ours encode portable"] = lambda: portable.compress(image)
        runs["ours decode portable"] = lambda: portable.decompress(portable_stream)
        print(f"portable {len(portable_stream)} bytes")
    seconds = least_seconds(runs, options.repeats)
    print(f"{'':34}   wall          CPU")
    for name, (wall, cpu) in seconds.items():
        task = name.removeprefix("CompressAI").removeprefix("ours").removesuffix(" bf16").removesuffix(" portable")
        base_wall, base_cpu = seconds["CompressAI" + task]
        print(f"{name:34} {wall:6.3f} s {base_wall / wall:5.2f}x {cpu:6.3f} s {base_cpu / cpu:5.2f}x")
    size = sum(len(strings[0]) for strings in coded["strings"])
    print(f"payload {len(latents.payload)} against {size} bytes: {100 * len(latents.payload) / size - 100:+.2f}%")


@pytest.mark.parametrize("variant", ["official", "chandelier"])
def test_elic(shared: Path, variant: str) -> None:
    pytest.importorskip("compressai", reason="`tox run -e bench-compressai`: it forces numpy<2")
    photo = shared / "data" / "kodak" / "kodim03.png"
    main([str(photo), "--variant", variant, "--repeats", "3"])


if __name__ == "__main__":
    main()
