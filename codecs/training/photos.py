"""Make the training set of the small weights that ship: crops of free photographs from Debian packages, and synthetic pictures.

    sources.csv --unpacked packages--> photographs --reduce, crop--+--> OUT/images, masks
                                       cut-outs, synthetic pictures-+    OUT/tags.json, captions.json, vocabulary.txt

    apt-get download PACKAGE ...; dpkg -x PACKAGE.deb ROOT            (the packages that sources.csv names)
    python -m icmbench.codecs.training.photos ROOT OUT --seed 0

The tags of a picture are the words that the list of sources gives, the names of what was drawn, and the colours measured in its
pixels.
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
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")  # Pillow would start Ghostscript for PostScript, whatever its name.
SIDE = 192  # Pixels.
MIN_TAG_COUNT = 5  # Tags on fewer pictures are dropped.
REDUCTIONS = (2, 3, 4)  # Downscaling removes most compression artefacts of the lossy originals.
MIN_DETAIL = 2.5  # Crops whose vertical neighbours differ by less on average are nearly plain; only one in six of them is kept.

# Names of saturated colours, each with the upper end of its range of hues in degrees.
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (200, "cyan"), (260, "blue"), (320, "purple"), (361, "red"))


@dataclass(frozen=True)
class Source:
    """One row of the list of sources; the fields are its columns.

    Attributes:
        package: Debian package that holds the files.
        version: version of the package.
        files: path or glob pattern below the folder in which the packages are unpacked.
        kind: "photo", or "cut-out" for RGBA images of single objects.
        author: who made the files.
        licence: SPDX name of the licence.
        words: tags of what the files show.
    """

    package: str
    version: str
    files: str
    kind: str
    author: str
    licence: str
    words: tuple[str, ...]


def read_sources(path: Path = SOURCES) -> list[Source]:
    """Read the list of sources from a CSV file, by default the one beside the small weights."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return [Source(**{**row, "words": tuple(row["words"].split())}) for row in rows]


def colours(image: np.ndarray, share: float = 0.12, most: int = 3) -> list[str]:
    """Name the main colours of an image.

    Args:
        image: uint8 (H, W, 3).
        share: smallest share of the pixels that a colour must cover.
        most: largest number of colours.

    Returns:
        Names of colours, the most frequent first; then "dark" or "bright" if the whole image is.
    """
    small = Image.fromarray(image).resize((64, 64), Image.Resampling.BOX)
    hsv, luma = np.asarray(small.convert("HSV")).reshape(-1, 3).astype(float), np.asarray(small.convert("L")).mean() / 255
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1] / 255, hsv[:, 2] / 255
    names = np.array([name for _, name in HUES])[np.searchsorted([end for end, _ in HUES], hue, side="right")].astype(object)
    names[(names == "orange") & (value < 0.6)] = "brown"
    names[saturation < 0.18] = "grey"
    names[(saturation < 0.18) & (value > 0.85)] = "white"
    names[value < 0.15] = "black"
    distinct, counts = np.unique(names.astype(str), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    tags = [str(distinct[k]) for k in order if counts[k] >= share * len(names)][:most]
    return tags + (["dark"] if luma < 0.2 else ["bright"] if luma > 0.7 else [])


def salience(image: np.ndarray) -> Image.Image:
    """Mark what stands out in an image: the blurred distance of each pixel from the mean colour.

    This replaces Grad-CAM, which would make the set depend on one classifier.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        A grey picture of the same size: 0 up to the 5th percentile of the distances, 255 from the 95th on.
    """
    distance = np.linalg.norm(image - image.mean(axis=(0, 1)), axis=2)
    blurred = gaussian_filter(distance, 8)
    low, high = np.quantile(blurred, [0.05, 0.95])
    return Image.fromarray(np.clip(255 * (blurred - low) / max(high - low, 1), 0, 255).astype(np.uint8))


def cut_crops(image: Image.Image, rng: np.random.Generator, side: int = SIDE) -> Iterator[np.ndarray]:
    """Reduce an image by 2, 3 and 4, and cut a randomly shifted grid of crops from each; most nearly plain crops are left out.

    Args:
        image: an RGB image.
        rng: the random generator.
        side: side of the crops in pixels.

    Yields:
        Crops, uint8 (side, side, 3).
    """
    for factor in REDUCTIONS:
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
                if np.abs(np.diff(crop.astype(np.int16), axis=0)).mean() > MIN_DETAIL or rng.random() < 1 / 6:
                    yield np.ascontiguousarray(crop)


def collect(root: Path, out: Path, seed: int = 0, synthetic_count: int = 400, most: int = 70, sources: Path = SOURCES) -> int:
    """Write the training set.

    Args:
        root: the folder in which the packages were unpacked.
        out: gets images/, masks/, tags.json, captions.json and vocabulary.txt.
        seed: decides everything that is drawn.
        synthetic_count: number of synthetic pictures.
        most: largest number of crops of one photograph.
        sources: CSV file, the list of sources.

    Returns:
        The number of pictures.

    Raises:
        FileNotFoundError: a package is not unpacked below `root`; the message names it.
    """
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    tags: dict[str, list[str]] = {}
    rng = np.random.default_rng(seed)

    def add_picture(name: str, image: np.ndarray, words: Sequence[str]) -> None:
        Image.fromarray(image).save(out / "images" / f"{name}.png", compress_level=3)
        salience(image).save(out / "masks" / f"{name}.png")
        tags[f"{name}.png"] = list(dict.fromkeys([*words, *colours(image)]))

    source_list = read_sources(sources)
    backgrounds: list[np.ndarray] = []
    for source in source_list:
        if source.kind == "photo":
            for path in _source_files(root, source):
                with Image.open(path, formats=FORMATS) as opened:
                    crops = list(cut_crops(opened.convert("RGB"), rng))
                rng.shuffle(crops)
                for number, crop in enumerate(crops[:most]):
                    add_picture(f"{source.package}-{_slug(path)}-{number:02}", crop, source.words)
                backgrounds += crops[:8]
    for source in source_list:
        if source.kind == "cut-out":
            for path in _source_files(root, source):
                with Image.open(path, formats=FORMATS) as opened:
                    cut_out = opened.convert("RGBA")
                words = [*source.words, path.parent.name.removesuffix("s")]
                for number in range(1 if "text" in words else 2):
                    on_photo = rng.integers(4) > 0
                    background = backgrounds[rng.integers(len(backgrounds))] if on_photo else synthetic.draw_gradient(rng, SIDE)[0]
                    image = synthetic.paste_cut_out(rng, SIDE, cut_out, background)
                    add_picture(f"{source.package}-{_slug(path)}-{number}", image, words)
    for number in range(synthetic_count):
        subject = list(synthetic.SUBJECTS)[number % len(synthetic.SUBJECTS)]
        image, words = _draw_synthetic(subject, rng)
        add_picture(f"synthetic-{subject}-{number:04}", image, words)
    _write_texts(out, tags)
    return len(tags)


def _write_texts(out: Path, tags: dict[str, list[str]]) -> None:
    """Write tags, captions made of them, and the vocabulary, without rare tags."""
    counts = Counter(word for words in tags.values() for word in words)
    vocabulary = sorted(word for word, count in counts.items() if count >= MIN_TAG_COUNT)
    tags = {name: [word for word in words if counts[word] >= MIN_TAG_COUNT] for name, words in tags.items()}
    captions = {name: "a picture of " + " and ".join(words) for name, words in tags.items()}
    (out / "tags.json").write_text(json.dumps(tags, indent=0, sort_keys=True))
    (out / "captions.json").write_text(json.dumps(captions, indent=0, sort_keys=True))
    (out / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")


def _draw_synthetic(subject: str, rng: np.random.Generator) -> synthetic.TaggedPicture:
    """Draw a synthetic picture; half of the shapes and words are on a texture instead of a gradient."""
    if subject in ("shapes", "writing") and rng.random() < 0.5:
        draw = {"shapes": synthetic.draw_shapes, "writing": synthetic.draw_words}[subject]
        return draw(rng, SIDE, synthetic.draw_texture(rng, SIDE)[0])
    return synthetic.SUBJECTS[subject](rng, SIDE)


def _source_files(root: Path, source: Source) -> list[Path]:
    paths = [path for path in sorted(root.glob(source.files)) if "cartoon" not in path.parts]
    if not paths:
        raise FileNotFoundError(f"{root / source.files} is not there: unpack the Debian package {source.package} in {root}")
    return paths


def _slug(path: Path) -> str:
    """A short unique name for a file. KDE calls the files of all wallpapers alike, so the name of their folder is added."""
    parts = path.parts
    stem = f"{parts[-4]}-{path.stem}" if "contents" in parts else path.stem
    return "".join(letter if letter.isalnum() else "-" for letter in stem.lower())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in which the packages were unpacked")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{collect(arguments.root, arguments.out, arguments.seed)} pictures in {arguments.out}")


if __name__ == "__main__":
    main()
