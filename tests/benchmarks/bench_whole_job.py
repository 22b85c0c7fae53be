"""JPEG and VVC points on COCO photographs with one detector: this project against the way CompressAI-Vision works.

That way is re-enacted from its documentation of remote inference, without its code: each rate point is a command of its own, which
processes one image at a time,

    JPEG    photograph -> JPEG file -> PNG file -> model
    VVC     photograph -> ffmpeg: YUV 4:2:0 10-bit file -> encoder: bitstream file -> decoder: YUV file -> ffmpeg: PNG file -> model

and collects predictions for pycocotools. Both sides use the same libvvenc, settings, detector, threshold and threads. Only the
conversion of photographs to 4:2:0 differs (CompressAI-Vision's is swscale's), so rates of VVC agree roughly, not to the byte.
"""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

IMAGES = int(os.environ.get("ICMBENCH_BENCH_IMAGES", "24"))
POINTS = {"jpeg": [10, 30], "vvenc": [37, 47]}
PRESET = "faster"


def compressai_vision_point(codec, point, photographs, annotations, network, ids):
    """Compute bits per pixel and AP of one rate point as a command of CompressAI-Vision does."""
    from imageio_ffmpeg import get_ffmpeg_exe
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from icmbench.tasks.models.yolox_onnx import YoloxOnnx

    def ffmpeg(*arguments):
        subprocess.run([get_ffmpeg_exe(), "-nostdin", "-y", "-v", "error", *map(str, arguments)], check=True, capture_output=True)

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
    entries = {entry["file_name"]: entry for entry in truth.dataset["images"]}
    model = YoloxOnnx(Path(network))
    numbers = sorted(truth.getCatIds())
    rows, bits, pixels = [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image_id in ids:
            source, stream, picture = Path(photographs, image_id), folder / f"{image_id}.bin", folder / f"{image_id}.png"
            entry = entries[image_id]
            if codec == "jpeg":
                with Image.open(source) as photograph:
                    Image.fromarray(np.asarray(photograph.convert("RGB"))).save(stream, "JPEG", quality=point)  # Without metadata.
                Image.open(stream, formats=["JPEG"]).save(picture)
            else:
                raw, decoded = folder / "in.yuv", folder / "dec.yuv"
                width, height = (side + side % 2 for side in (entry["width"], entry["height"]))
                form = ("-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", f"{width}x{height}", "-r", "1")
                ffmpeg("-i", source, "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-f", "rawvideo", "-pix_fmt", "yuv420p10le", raw)
                settings = ("-preset", PRESET, "-qp", point, "-qpa", "0", "-period", "1")
                ffmpeg(*form, "-i", raw, "-threads", "1", "-c:v", "libvvenc", *settings, "-f", "vvc", stream)
                ffmpeg("-threads", "1", "-f", "vvc", "-i", stream, "-f", "rawvideo", "-pix_fmt", "yuv420p10le", decoded)
                ffmpeg(*form, "-i", decoded, "-vf", f"crop={entry['width']}:{entry['height']}:0:0", "-pix_fmt", "rgb24", picture)
                raw.unlink()
                decoded.unlink()
            [prediction] = model([np.asarray(Image.open(picture).convert("RGB"))])
            for (x1, y1, x2, y2), score, label in zip(prediction["boxes"], prediction["scores"], prediction["classes"]):
                box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
                rows.append({"image_id": entry["id"], "category_id": numbers[label], "bbox": box, "score": float(score)})
            bits += 8 * stream.stat().st_size
            pixels += entry["width"] * entry["height"]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.imgIds = [entries[image_id]["id"] for image_id in ids]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"bpp": bits / pixels, "AP": 100 * evaluation.stats[0]}


@pytest.mark.parametrize("workers", [1, 2])
def test_whole_job(coco, write_experiment, tmp_path, in_turns, monkeypatch, workers):
    """Compare the time of all points. With two workers, the other side runs two points at a time, as its job scripts do."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    dataset = coco["dataset"]
    ids = sorted(entry["file_name"] for entry in json.loads(Path(dataset["instances"]).read_text())["images"])[:IMAGES]
    codecs = [{"name": "jpeg", "points": POINTS["jpeg"]}, {"name": "vvenc", "points": POINTS["vvenc"], "set": {"preset": PRESET}}]
    tasks = [{"name": "detection", "dataset": "coco", "model": coco["yolox"]}]
    path = write_experiment(
        "whole", datasets={"coco": dataset | {"limit": IMAGES}}, codecs=codecs, tasks=tasks, shard_size=8, anchor="jpeg"
    )
    turn = itertools.count()
    points = [(codec, point) for codec, points in POINTS.items() for point in points]
    scores = {}

    def run_icmbench():
        out = tmp_path / f"run{next(turn)}"
        command = [sys.executable, "-m", "icmbench.harness.cli", "run", path, "--out", out, "--workers", str(workers)]
        subprocess.run(command, check=True, capture_output=True)
        table = pd.read_csv(out / "scores.csv")
        for _, row in table[(table.metric == "AP") & (table.codec != "uncompressed")].iterrows():
            scores[row.codec, int(row.point.split("=")[1])] = row.bpp, row.value

    def run_commands():
        for batch in (points[k : k + workers] for k in range(0, len(points), workers)):
            jobs = [
                subprocess.Popen(
                    [
                        sys.executable,
                        __file__,
                        json.dumps([*point, dataset["images"], dataset["instances"], coco["yolox"]["path"], ids]),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for point in batch
            ]
            for point, process in zip(batch, jobs, strict=True):
                answer = json.loads(process.communicate()[0])
                bpp, value = scores[point]
                ours_text, theirs_text = f"{bpp:.4f} bpp, AP {value:.2f}", f"{answer['bpp']:.4f} bpp, AP {answer['AP']:.2f}"
                print(f"  {point[0]} {point[1]}: {ours_text}; its way {theirs_text}")
                if point[0] == "jpeg":  # Both sides code the same pixels with the same library.
                    assert answer["AP"] == pytest.approx(value, abs=1e-6)
                    assert answer["bpp"] == pytest.approx(bpp, rel=1e-9)
                else:
                    assert answer["bpp"] == pytest.approx(bpp, rel=0.1)

    runs = {"icmbench": run_icmbench, "CompressAI-Vision's way": run_commands}
    ratio = in_turns(f"whole job, {IMAGES} images, 4 points, {workers} at a time", runs, repeats=1)["CompressAI-Vision's way"]
    print(f"  its way takes {ratio.wall:.2f} times as long, {ratio.cpu:.2f} times the CPU")


if __name__ == "__main__":
    print(json.dumps(compressai_vision_point(*json.loads(sys.argv[1]))))
