"""Compare an adapter with a direct call of its authors' code, both in the authors' environment.

    python tests/adapters/verify.py ms_illm --python envs/ms_illm/bin/python --checkout checkouts/NeuralCompression \
        --images kodim01.png kodim02.png --size 256

`tests/adapters/NAME.py` says how: `prepare(folder)` writes small random weights and returns the adapter's point and options,
`direct(folder, image)` calls the authors' code as their own script does. Every step runs in a process of its own in the guest's
interpreter, so that nothing but files passes between them: prepare, direct, encode, decode, odd. The decoder gets the bytes alone.
This file runs on both sides and therefore needs Python 3.8, the standard library and numpy, no more.

With `--icmbench .tox/test/bin/icmbench` the adapter also runs as a guest in an experiment on the same images, whose streams' sizes
and exported pictures are compared as well.

Printed is one row: what ran, the bytes, and whether the payload of the authors and their pixels are those of the adapter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
import traceback
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ODD_SIZES = ((1, 1), (17, 300), (65, 64))  # height, width
VERDICTS = 4  # Columns of the row before the first verdict.
STEPS = ("prepare", "direct", "encode", "decode", "odd")


def main() -> int:
    """Run all steps for one adapter and print its row."""
    args = _arguments()
    if args.step:
        sys.path.pop(0)  # Python put this file's folder there; its files must not hide the authors' modules.
        STEP_FUNCTIONS[args.step](args.name, args.folder.resolve())
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    for pattern in (
        "image*",
        "direct*",
        "stream*.bin",
        "decoded*",
        "batch*",
    ):  # An earlier call's must not be taken for this one's.
        for old in args.folder.glob(pattern):
            old.unlink()
    for index, path in enumerate(args.images):
        np.save(args.folder / f"image{index}.npy", crop(read_png(path), args.size))
    seconds = {step: _run_step(step, args) for step in STEPS}
    row = summary(args.name, args.folder)
    row["icmbench run"] = run_experiment(args) if args.icmbench else "none"
    print(" | ".join(row))
    print(" | ".join(row.values()))
    print("seconds: " + ", ".join(f"{step} {value:.0f}" for step, value in seconds.items()))
    return 0 if all(value in ("yes", "none") for value in list(row.values())[VERDICTS:]) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare an adapter with a direct call of its authors' code.")
    parser.add_argument("name", help="name of codecs/adapters/NAME.py and tests/adapters/NAME.py")
    parser.add_argument("--python", type=Path, help="interpreter of the authors' environment")
    parser.add_argument("--checkout", type=Path, nargs="+", default=[], help="folders of the authors' code, first on sys.path")
    parser.add_argument(
        "--folder", type=Path, default=Path("verified"), help="a folder NAME in here gets weights, streams and pixels"
    )
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="8-bit RGB PNG files")
    parser.add_argument(
        "--size", type=int, default=256, help="side of the square that is cut out of each image's centre; 0 for all of it"
    )
    parser.add_argument("--icmbench", type=Path, help="the command icmbench: also run an experiment with the adapter as a guest")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # what a guest process is started with
    args = parser.parse_args()
    if not args.step and not (args.python and args.images):
        parser.error("give --python and --images")
    args.folder = args.folder / args.name if not args.step else args.folder
    return args


def _run_step(step: str, args: argparse.Namespace) -> float:
    """Seconds that one step took in a fresh process of the guest's interpreter."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path.resolve()) for path in args.checkout),
        "HF_HUB_OFFLINE": "1",
    }
    # Not resolved: the interpreter of a virtual environment is a link, and its target does not know the environment.
    command = [str(args.python.absolute()), "-B", str(Path(__file__).resolve()), args.name, "--step", step]
    start = time.monotonic()
    done = subprocess.run([*command, "--folder", str(args.folder.resolve())], env=environment, cwd=args.folder, check=False)
    if done.returncode:
        raise SystemExit(f"{args.name}: the step {step!r} ended with {done.returncode}")
    return time.monotonic() - start


def prepare(name: str, folder: Path) -> None:
    """Write the random weights, and the adapter's point and options as JSON."""
    settings = _load(ROOT / "tests" / "adapters" / f"{name}.py").prepare(folder)
    (folder / "settings.json").write_text(json.dumps(settings, default=str), encoding="utf-8")
    try:
        import torch

        version = f"torch {torch.__version__}"
    except ImportError:
        version = "no torch"
    (folder / "versions.txt").write_text(f"Python {platform.python_version()}, {version}, numpy {np.__version__}", encoding="utf-8")


def direct(name: str, folder: Path) -> None:
    """What the authors' code makes of each image."""
    test = _load(ROOT / "tests" / "adapters" / f"{name}.py")
    for index, image in enumerate(_images(folder)):
        payload, pixels = test.direct(folder, image)
        (folder / f"direct{index}.bin").write_bytes(payload if isinstance(payload, bytes) else struct.pack("<d", payload))
        np.save(folder / f"direct{index}.npy", pixels)


def encode(name: str, folder: Path) -> None:
    """Streams of the adapter, one by one and, where it has batches, all at once; pixels and bits where it writes no bytes."""
    codec = adapter(name, folder)
    images = _images(folder)
    for index, image in enumerate(images):
        if hasattr(codec, "reconstruct"):
            pixels, bits = codec.reconstruct(image)
            (folder / f"stream{index}.bin").write_bytes(struct.pack("<d", bits))
            np.save(folder / f"decoded{index}.npy", pixels)
        else:
            (folder / f"stream{index}.bin").write_bytes(codec.compress(image))
    if hasattr(codec, "compress_batch"):
        for index, stream in enumerate(codec.compress_batch(images, [str(index) for index in range(len(images))])):
            (folder / f"batch{index}.bin").write_bytes(stream)


def decode(name: str, folder: Path) -> None:
    """Pixels from the bytes alone."""
    codec = adapter(name, folder)
    if hasattr(codec, "reconstruct"):
        return
    streams = [path.read_bytes() for path in sorted(folder.glob("stream*.bin"))]
    for index, stream in enumerate(streams):
        np.save(folder / f"decoded{index}.npy", codec.decompress(stream))
    if hasattr(codec, "decompress_batch"):
        for index, pixels in enumerate(codec.decompress_batch(streams)):
            np.save(folder / f"batch{index}.npy", pixels)


def odd(name: str, folder: Path) -> None:
    """Whether images of odd sizes keep their size, and whether damaged streams are recognised."""
    codec = adapter(name, folder)
    whole = np.load(folder / "image0.npy")
    problems = {"odd": [], "damaged": [], "estimates": hasattr(codec, "reconstruct")}
    for height, width in ODD_SIZES:
        image = np.ascontiguousarray(np.resize(whole, (height, width, 3)))
        try:
            pixels = codec.reconstruct(image)[0] if hasattr(codec, "reconstruct") else codec.decompress(codec.compress(image))
            if pixels.shape != image.shape or pixels.dtype != np.uint8:
                problems["odd"].append(f"{height}x{width} became {pixels.dtype} {pixels.shape}")
        except Exception:
            traceback.print_exc()
            problems["odd"].append(f"{height}x{width} failed")
    if not hasattr(codec, "reconstruct"):
        stream = (folder / "stream0.bin").read_bytes()
        for label, damaged in (
            ("empty", b""),
            ("first byte", stream[:1]),
            ("half", stream[: len(stream) // 2]),
            ("longer", stream + b"x"),
        ):
            try:
                codec.decompress(damaged)
                problems["damaged"].append(f"{label}: decoded")
            except Exception as error:
                if type(error).__name__ != "BitstreamError":
                    traceback.print_exc()
                    problems["damaged"].append(f"{label}: {type(error).__name__}")
    (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")


STEP_FUNCTIONS = {"prepare": prepare, "direct": direct, "encode": encode, "decode": decode, "odd": odd}


def adapter(name: str, folder: Path):
    """The adapter, made with the options that `prepare` returned."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    module = _load(ROOT / "codecs" / "adapters" / f"{name}.py")
    (kind,) = [value for value in vars(module).values() if isinstance(value, type) and isinstance(vars(value).get("name"), str)]
    hints = kind.__init__.__annotations__
    options = {key: Path(value) if "Path" in str(hints.get(key, "")) else value for key, value in settings["options"].items()}
    return kind(settings["point"], **options)


def summary(name: str, folder: Path) -> dict[str, str]:
    """The row of the table, made of the files that the steps left."""
    payload, pixels, sizes, lengths = [], [], [], []
    for index, image in enumerate(_images(folder)):
        stream = (folder / f"stream{index}.bin").read_bytes()
        payload.append((folder / f"direct{index}.bin").read_bytes() in stream)
        pixels.append(np.array_equal(np.load(folder / f"direct{index}.npy"), np.load(folder / f"decoded{index}.npy")))
        sizes.append(f"{image.shape[1]}x{image.shape[0]}")
        lengths.append(len(stream))
    batch = [
        path.read_bytes() == path.with_name(path.name.replace("batch", "stream")).read_bytes() for path in folder.glob("batch*.bin")
    ]
    batch += [
        np.array_equal(np.load(path), np.load(path.with_name(path.name.replace("batch", "decoded"))))
        for path in folder.glob("batch*.npy")
    ]
    problems = json.loads((folder / "problems.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "interpreter": (folder / "versions.txt").read_text(encoding="utf-8"),
        "sizes": " ".join(sizes),
        "stream bytes": " ".join(map(str, lengths)),
        "payload equal": _verdict(payload),
        "pixels equal": _verdict(pixels),
        "batch equal": _verdict(batch) if batch else "none",
        "odd sizes": "; ".join(problems["odd"]) or "yes",
        "damaged streams": "; ".join(problems["damaged"]) or "yes",
    }


def run_experiment(args: argparse.Namespace) -> str:
    """Whether an experiment with the adapter as a guest counts the same bytes and scores the same pixels."""
    folder = args.folder.resolve() / "experiment"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    for index, image in enumerate(_images(args.folder)):
        write_png(folder / "pictures" / f"image{index}.png", image)
    settings = json.loads((args.folder / "settings.json").read_text(encoding="utf-8"))
    python = str(args.python.absolute())  # A link again.
    section = {"name": "guest", "environment": "authors", "label": "adapter", "points": [settings["point"]]}
    experiment = {  # JSON is YAML too.
        "name": args.name,
        "environments": {"authors": {"python": python, "path": [str(path.resolve()) for path in args.checkout]}},
        "datasets": {"pictures": {"kind": "images", "images": "pictures"}},
        "codecs": [{**section, "set": {"file": args.name, **settings["options"]}}],
        "tasks": [{"name": "fidelity", "dataset": "pictures"}],
    }
    (folder / "experiment.yaml").write_text(json.dumps(experiment), encoding="utf-8")
    commands = ("run experiment.yaml --workers 0 --out run", "export run --codec adapter --to exported")
    for command in commands:
        done = subprocess.run([str(args.icmbench.absolute()), *command.split()], cwd=folder, check=False)
        if done.returncode:
            return f"{command.split()[0]} ended with {done.returncode}"
    equal = []
    for index in range(len(args.images)):
        (picture,) = (folder / "exported").rglob(f"image{index}.png")
        equal.append(np.array_equal(read_png(picture), np.load(args.folder / f"decoded{index}.npy")))
    if not json.loads((args.folder / "problems.json").read_text(encoding="utf-8"))["estimates"]:
        counted = (folder / "exported" / "pictures" / "adapter" / "sizes.csv").read_text(encoding="utf-8").splitlines()[1:]
        sizes = sorted(int(line.rsplit(",", 1)[1]) for line in counted)
        equal.append(sizes == sorted(path.stat().st_size for path in args.folder.glob("stream*.bin")))
    return _verdict(equal)


def _verdict(equal: list[bool]) -> str:
    return "yes" if all(equal) else f"NO ({sum(equal)} of {len(equal)})"


def _images(folder: Path) -> list[np.ndarray]:
    return [np.load(path) for path in sorted(folder.glob("image*.npy"))]


def _load(path: Path):
    """The module of a file, without making its folder a place for imports."""
    spec = importlib.util.spec_from_file_location(f"adapter_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def crop(image: np.ndarray, size: int) -> np.ndarray:
    """The square of `size` pixels at the centre, or the whole image where `size` is 0."""
    if not size:
        return image
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def write_png(path: Path, image: np.ndarray) -> None:
    """An 8-bit RGB PNG whose lines are not filtered."""
    lines = np.concatenate([np.zeros((image.shape[0], 1), np.uint8), image.reshape(image.shape[0], -1)], axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(lines.tobytes()),
    }
    packed = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in {**chunks, b"IEND": b""}.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def read_png(path: Path) -> np.ndarray:
    """Pixels of an 8-bit RGB PNG that is not interlaced, as all Kodak pictures are (PNG standard, clauses 9.2 and 11.2)."""
    data, position, packed = path.read_bytes(), 8, b""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    if (depth, colour, interlaced) != (8, 2, 0):
        raise SystemExit(f"{path}: not an 8-bit RGB PNG without interlacing")
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        packed += data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += length + 12
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)
    above, image = [0] * (3 * width), np.empty((height, width, 3), np.uint8)
    for row in range(height):
        above = _unfiltered(int(lines[row, 0]), lines[row, 1:].tolist(), above)
        image[row] = np.reshape(above, (width, 3))
    return image


def _unfiltered(kind: int, line: list[int], above: list[int]) -> list[int]:
    """One line of a PNG with its filter undone, given the line above it. A pixel has three bytes."""
    for i in range(len(line)):
        left, up, corner = (line[i - 3], above[i], above[i - 3]) if i >= 3 else (0, above[i], 0)
        if kind == 4:  # Paeth: whichever of the three is nearest to left + up - corner; ties go left, then up.
            distances = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
            predicted = (left, up, corner)[distances.index(min(distances))]
        else:
            predicted = (0, left, up, (left + up) // 2)[kind]
        line[i] = (line[i] + predicted) & 255
    return line


if __name__ == "__main__":
    sys.exit(main())
