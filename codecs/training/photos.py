"""Makes the training set of the small weights that ship: crops of freely licensed photographs out of Debian packages, and pictures.

    sources.csv --unpacked packages--> photographs --reduce, crop--+--> OUT/images, masks
                                       cut-outs, synthetic pictures-+    OUT/tags.json, captions.json, vocabulary.txt

    apt-get download PACKAGE ...; dpkg -x PACKAGE.deb ROOT            (the packages that sources.csv names)
    python -m icmbench.codecs.training.photos ROOT OUT --seed 0

Tags are words of the list of sources, names of what was drawn, and colours measured in the pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from icmbench.codecs.training import synthetic

SOURCES = Path(__file__).parent.parent / "diffusion" / "pretrained" / "tiny" / "sources.csv"
SIDE = 192
RARE = 5  # pictures that a tag needs to be one
REDUCE = (2, 3, 4)  # originals are compressed with loss: what is left has little of that
PLAIN = 2.5  # mean difference of neighbouring pixels under which a crop shows little; one in six such is kept

# Saturated hues by their upper end in degrees.
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (200, "cyan"), (260, "blue"), (320, "purple"), (361, "red"))


@dataclass(frozen=True)
class Source:
    """A row of the list. files: a path or pattern in the package. kind: photo, or cut-out (RGBA). words: tags of what it shows."""

    package: str
    version: str
    files: str
    kind: str
    author: str
    licence: str
    words: tuple[str, ...]


def read_sources(path: Path = SOURCES) -> list[Source]:
    """The list of sources."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [Source(**{**row, "words": tuple(row["words"].split())}) for row in rows]


def colours(image: np.ndarray, share: float = 0.12, most: int = 3) -> list[str]:
    """Names of the colours that cover at least `share` of a uint8 image (H, W, 3), the most frequent first; then dark or bright."""
    small = Image.fromarray(image).resize((64, 64), Image.Resampling.BOX)
    hsv, luma = np.asarray(small.convert("HSV")).reshape(-1, 3).astype(float), np.asarray(small.convert("L")).mean() / 255
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1] / 255, hsv[:, 2] / 255
    names = np.array([name for _, name in HUES])[np.searchsorted([end for end, _ in HUES], hue, side="right")].astype(object)
    names[(names == "orange") & (value < 0.6)] = "brown"
    names[saturation < 0.18] = "grey"
    names[(saturation < 0.18) & (value > 0.85)] = "white"
    names[value < 0.15] = "black"
    found, counts = np.unique(names.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    tags = [str(found[k]) for k in order if counts[k] >= share * len(names)][:most]
    return tags + (["dark"] if luma < 0.2 else ["bright"] if luma > 0.7 else [])


def salience(image: np.ndarray) -> Image.Image:
    """Where something stands out of a uint8 image (H, W, 3), in grey: distance from the mean colour, blurred, 255 at its largest.

    Stands in for Grad-CAM, which would tie the set to one classifier.
    """
    distance = np.linalg.norm(image - image.mean(axis=(0, 1)), axis=2)
    blurred = gaussian_filter(distance, 8)
    low, high = np.quantile(blurred, [0.05, 0.95])
    return Image.fromarray(np.clip(255 * (blurred - low) / max(high - low, 1), 0, 255).astype(np.uint8))


def crops(image: Image.Image, rng: np.random.Generator, side: int = SIDE) -> Iterator[np.ndarray]:
    """Crops of an image reduced by 2, 3 and 4: a grid over each, shifted at random. Those that show nothing are mostly left out."""
    for factor in REDUCE:
        small = np.asarray(image.reduce(factor))
        height, width = small.shape[:2]
        if min(height, width) < side:
            continue
        rows, columns = height // side, width // side
        top, left = rng.integers(height - rows * side + 1), rng.integers(width - columns * side + 1)
        for row in range(rows):
            for column in range(columns):
                y, x = top + row * side, left + column * side
                crop = small[y : y + side, x : x + side]
                if np.abs(np.diff(crop.astype(np.int16), axis=0)).mean() > PLAIN or rng.random() < 1 / 6:
                    yield np.ascontiguousarray(crop)


def collect(root: Path, out: Path, seed: int = 0, synthetic_count: int = 400, most: int = 70, sources: Path = SOURCES) -> int:
    """Write the set into `out` and say how many pictures it has.

    root: the folder in which the packages were unpacked. most: crops of one photograph. FileNotFoundError names a package that is
    not there.
    """
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    tags: dict[str, list[str]] = {}
    rng = np.random.default_rng(seed)

    def keep(name: str, image: np.ndarray, words: Sequence[str]) -> None:
        Image.fromarray(image).save(out / "images" / f"{name}.png", compress_level=3)
        salience(image).save(out / "masks" / f"{name}.png")
        tags[f"{name}.png"] = list(dict.fromkeys([*words, *colours(image)]))

    listed = read_sources(sources)
    backgrounds: list[np.ndarray] = []
    for source in listed:
        if source.kind == "photo":
            for path in _files(root, source):
                with Image.open(path) as opened:
                    found = list(crops(opened.convert("RGB"), rng))
                rng.shuffle(found)
                for number, crop in enumerate(found[:most]):
                    keep(f"{source.package}-{_slug(path)}-{number:02}", crop, source.words)
                backgrounds += found[:8]
    for source in listed:
        if source.kind == "cut-out":
            for path in _files(root, source):
                with Image.open(path) as opened:
                    thing = opened.convert("RGBA")
                words = [*source.words, path.parent.name.removesuffix("s")]
                for number in range(1 if "text" in words else 2):
                    ground = backgrounds[rng.integers(len(backgrounds))] if rng.integers(4) else synthetic.gradient(rng, SIDE)[0]
                    image = synthetic.paste(rng, SIDE, thing, ground)
                    keep(f"{source.package}-{_slug(path)}-{number}", image, words)
    for number in range(synthetic_count):
        kind = list(synthetic.KINDS)[number % len(synthetic.KINDS)]
        if kind in ("shapes", "writing") and rng.random() < 0.5:
            make = {"shapes": synthetic.shapes, "writing": synthetic.writing}[kind]
            image, words = make(rng, SIDE, synthetic.texture(rng, SIDE)[0])
        else:
            image, words = synthetic.KINDS[kind](rng, SIDE)
        keep(f"synthetic-{kind}-{number:04}", image, words)
    counts = Counter(word for words in tags.values() for word in words)
    vocabulary = sorted(word for word, count in counts.items() if count >= RARE)
    tags = {name: [word for word in words if counts[word] >= RARE] for name, words in tags.items()}
    captions = {name: "a picture of " + " and ".join(words) for name, words in tags.items()}
    (out / "tags.json").write_text(json.dumps(tags, indent=0, sort_keys=True))
    (out / "captions.json").write_text(json.dumps(captions, indent=0, sort_keys=True))
    (out / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")
    return len(tags)


def _files(root: Path, source: Source) -> list[Path]:
    found = [path for path in sorted(root.glob(source.files)) if "cartoon" not in path.parts]
    if not found:
        raise FileNotFoundError(f"{root / source.files} is not there: unpack the Debian package {source.package} in {root}")
    return found


def _slug(path: Path) -> str:
    """A name that tells files apart: of wallpapers in KDE's layout, the folder's."""
    parts = path.parts
    stem = f"{parts[-4]}-{path.stem}" if "contents" in parts else path.stem
    return "".join(letter if letter.isalnum() else "-" for letter in stem.lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in which the packages were unpacked")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{collect(arguments.root, arguments.out, arguments.seed)} pictures in {arguments.out}")


if __name__ == "__main__":
    main()
