"""A detector, a classifier and CLIP: images a second through the harness over those of the bare model; and the speed of ELIC.

    python tests/benchmarks/bench_gpu.py [--models classifier detector clip elic] [--device cuda] [--coders 8] [--images 400]
                                         [--tiny]

Weights are random, in the real architectures (ViT-B/16, YOLOS-small, CLIP ViT-B/32 of open_clip); --tiny makes them small, to try
the benchmark on a CPU. The harness codes JPEG in `--coders` processes and predicts in one model process. Its speed is taken from
two runs, of N and of 2N images, so that starting processes and loading models does not count. The goal is 0.9 with 8 coders.
ELIC encodes and decodes one picture of 768x512, entropy coding included; its goal is 0.05 s each way.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.experiment import Experiment

BATCH = 16
SIZE = (640, 480)


def make_photos(folder: Path, count: int) -> None:
    """Smooth pictures of one size, with a caption and three boxes each, in COCO's layout."""
    folder.mkdir()
    random = np.random.default_rng(0)
    images, captions, boxes = [], [], []
    for k in range(count):
        small = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8))
        small.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{k:06d}.jpg", quality=95)
        images.append({"id": k, "file_name": f"{k:06d}.jpg", "width": SIZE[0], "height": SIZE[1]})
        captions.append({"id": k, "image_id": k, "caption": f"picture number {k}"})
        corners = [(20 + 150 * j, 30 + 10 * j) for j in range(3)]
        boxes += [
            {"id": 3 * k + j, "image_id": k, "category_id": 1, "bbox": [x, y, 100, 90], "area": 9000, "iscrowd": 0}
            for j, (x, y) in enumerate(corners)
        ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "label_0"}]}
    (folder.parent / "boxes.json").write_text(json.dumps(content))
    (folder.parent / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


def save_classifier(folder: Path, tiny: bool) -> dict[str, Any]:
    """ViT-B/16 with random weights, as options of its adapter."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} if tiny else {}
    ViTForImageClassification(ViTConfig(num_labels=1000, **small)).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return {"name": "transformers-classifier", "path": str(folder), "batch_size": BATCH}


def save_detector(folder: Path, tiny: bool) -> dict[str, Any]:
    """YOLOS-small with random weights, as options of its adapter."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    sizes = (32, 2, 2, 64) if tiny else (384, 12, 6, 1536)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = YolosConfig(**dict(zip(names, sizes, strict=True)), image_size=[480, 640], num_labels=1, num_detection_tokens=100)
    config.id2label = {0: "label_0"}
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 480, "longest_edge": 640}).save_pretrained(folder)
    return {"name": "transformers-detector", "path": str(folder), "batch_size": BATCH, "score_threshold": 0.3}


def save_clip(folder: Path, tiny: bool) -> dict[str, Any]:
    """CLIP ViT-B/32 with random weights, as options of its adapter."""
    import open_clip
    import torch

    folder.mkdir()
    architecture = "RN50" if tiny else "ViT-B-32"
    torch.save(open_clip.create_model(architecture).state_dict(), folder / "weights.pt")
    return {"name": "open-clip", "architecture": architecture, "path": str(folder / "weights.pt"), "batch_size": BATCH}


TASKS = {
    "classifier": (save_classifier, {"name": "classification", "reference": "original"}, "boxes.json"),
    "detector": (save_detector, {"name": "detection", "reference": "original"}, "boxes.json"),
    "clip": (save_clip, {"name": "retrieval"}, "captions.json"),
}


def harness_seconds(scratch: Path, task: dict[str, Any], labels: str, images: int, options: argparse.Namespace) -> float:
    """Seconds in which the harness codes and predicts on so many images at two points, from the command to its last row."""
    kind = {"captions": str(scratch / labels)} if labels.startswith("captions") else {"instances": str(scratch / labels)}
    experiment = Experiment(
        name="gpu",
        shard_size=32,
        batch_size=BATCH,
        bootstrap=0,
        limit=images,
        datasets={"photos": {"kind": "coco", "images": str(scratch / "photos"), **kind}},
        codecs=[{"name": "jpeg", "points": [20, 60]}],
        tasks=[{**task, "dataset": "photos"}],
    )
    with tempfile.TemporaryDirectory() as folder:
        result = run(experiment, folder, RunOptions(coders=options.coders, models=1, images=0))
    if result.missing:
        raise SystemExit(f"cells are missing: {result.missing[:3]} {result.outcome.failures[:3]}")
    return result.seconds["loop"]


def bare_seconds(task: dict[str, Any], scratch: Path, images: int) -> float:
    """Seconds in which the bare model predicts on the same pixels, which lie decoded in memory."""
    from icmbench.harness.config.plugins import load

    options = dict(task["model"])
    adapter = load("models", options.pop("name"), "model")
    model = adapter(**{**options, "path": Path(options["path"])})
    files = sorted((scratch / "photos").iterdir())[:images]
    pixels = [jpeg_of(file, quality) for quality in (100, 20, 60) for file in files]  # The originals, and the two points.
    call = model.embed_images if hasattr(model, "embed_images") else model
    call(pixels[:BATCH])
    start = time.perf_counter()
    for first in range(0, len(pixels), BATCH):
        call(pixels[first : first + BATCH])
    return time.perf_counter() - start


def time_elic(device: str, repeats: int = 5) -> None:
    """Print the shortest seconds in which ELIC, in its full size and with made-up weights, encodes and decodes a picture."""
    import torch

    from icmbench.codecs import elic_model
    from icmbench.codecs.elic import Elic

    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    picture = np.asarray(Image.fromarray(pixels).resize((768, 512), Image.Resampling.BICUBIC))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "elic.safetensors"
        elic_model.save_network(elic_model.fill_synthetic(elic_model.ElicNetwork("official")), path)
        codec = Elic(0.016, weights=path, device=device)
    stream = codec.compress(picture)
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(repeats):
        for name, call in (("encode", lambda: codec.compress(picture)), ("decode", lambda: codec.decompress(stream))):
            start = time.perf_counter()
            call()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    for name, taken in seconds.items():
        print(f"elic on {device}: {name} {min(taken):.3f} s for 768x512, {len(stream)} bytes (goal 0.05 s)", flush=True)


def jpeg_of(file: Path, quality: int) -> np.ndarray:
    """A photograph after JPEG of some quality; 100 stands for the file itself."""
    picture = Image.open(file)
    if quality < 100:
        buffer = io.BytesIO()
        picture.save(buffer, "jpeg", quality=quality)
        picture = Image.open(buffer)
    return np.asarray(picture.convert("RGB"))


def main() -> None:
    """Measure each model, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*TASKS, "elic"], default=[*TASKS, "elic"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--coders", type=int, default=8)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if "elic" in options.models:
        time_elic(options.device)
    for name in (name for name in options.models if name in TASKS):
        save, section, labels = TASKS[name]
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            make_photos(scratch / "photos", 2 * options.images)
            task = {**section, "model": {**save(scratch / name, options.tiny), "device": options.device}}
            few, many = (harness_seconds(scratch, task, labels, n * options.images, options) for n in (1, 2))
            bare = bare_seconds(task, scratch, options.images)
        rate, bare_rate = 3 * options.images / (many - few), 3 * options.images / bare
        print(
            f"{name} on {options.device}: {rate:.1f} images/s through the harness, {bare_rate:.1f} bare, "
            f"ratio {rate / bare_rate:.3f} (goal 0.9); first {options.images} images took {few:.1f} s with start-up",
            flush=True,
        )


if __name__ == "__main__":
    main()
