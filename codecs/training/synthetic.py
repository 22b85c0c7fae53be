"""Pictures made by a random generator, with their tags: shapes, writing, textures, gradients, objects pasted on a background.

Every function takes a NumPy generator and a side length and returns a uint8 image (side, side, 3) with the tags that describe it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Pixels = np.ndarray  # uint8 (H, W, 3)
Tagged = tuple[Pixels, list[str]]

WORDS = (
    "ART", "BIKE", "BUS", "CAFE", "CITY", "CODEC", "DOG", "EXIT", "FISH", "HOTEL", "IMAGE", "MILK",
    "NORTH", "OPEN", "PARK", "RATE", "SALE", "STOP", "TAXI", "TREE", "ZOO", "12", "24", "365",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "line")
TEXTURES = ("stripes", "checkerboard", "dots", "clouds", "bricks", "waves")


def gradient(rng: np.random.Generator, side: int) -> Tagged:
    """Two or three colours that pass into one another along a direction."""
    angle, count = rng.uniform(0, 2 * np.pi), rng.integers(2, 4)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    along = np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1)
    stops, colours = np.linspace(0, 1, count), rng.uniform(0, 255, (count, 3))
    return _uint8(np.stack([np.interp(along, stops, colours[:, c]) for c in range(3)], -1)), ["gradient"]


def texture(rng: np.random.Generator, side: int) -> Tagged:
    """A repeated or random pattern between two colours, turned by a random angle."""
    name, period = TEXTURES[rng.integers(len(TEXTURES))], rng.uniform(6, 40)
    angle = rng.uniform(0, np.pi) if name != "bricks" else 0.0
    y, x = np.mgrid[:side, :side].astype(float)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    soft = rng.uniform(0.5, 4)  # how sharp an edge is
    if name == "clouds":
        mix = fractal(rng, side, rng.uniform(0.8, 1.6))
    elif name == "stripes":
        mix = _edge(np.sin(2 * np.pi * u / period), soft)
    elif name == "waves":
        mix = _edge(np.sin(2 * np.pi * (u + period / 3 * np.sin(2 * np.pi * v / period / 2)) / period), soft)
    elif name == "checkerboard":
        mix = _edge(np.sin(np.pi * u / period) * np.sin(np.pi * v / period), 2 * soft)
    elif name == "dots":
        mix = _edge(np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period) - 0.6, soft)
    else:
        row = np.floor(v / period)
        mortar = np.minimum(np.abs(v / period % 1 - 0.5), 2 * np.abs((u / period / 2 + row / 2) % 1 - 0.5))
        mix = _edge(0.42 - mortar, 8 * soft)
    a, b = rng.uniform(0, 255, (2, 3))
    grain = rng.normal(0, rng.uniform(0, 8), (side, side, 1))
    return _uint8(a + (b - a) * mix[..., None] + grain), [name]


def shapes(rng: np.random.Generator, side: int, background: Pixels | None = None) -> Tagged:
    """Up to five filled shapes on a background, by default a gradient; drawn at twice the size, so that edges are smooth."""
    ground = gradient(rng, side)[0] if background is None else background
    image = Image.fromarray(ground).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    draw, tags = ImageDraw.Draw(image), []
    for _ in range(rng.integers(1, 6)):
        name = SHAPES[rng.integers(len(SHAPES))]
        cx, cy = rng.uniform(0, 2 * side, 2)
        radius, turn = rng.uniform(0.1, 0.6) * side, rng.uniform(0, 2 * np.pi)
        fill = tuple(int(v) for v in rng.integers(0, 256, 3))
        if name == "circle":
            draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill)
        elif name == "line":
            dx, dy = 2 * radius * np.cos(turn), 2 * radius * np.sin(turn)
            draw.line((cx - dx, cy - dy, cx + dx, cy + dy), fill, int(rng.integers(3, 20)))
        else:
            corners = {"square": 4, "triangle": 3, "star": 10}[name]
            radii = [radius * (0.45 if name == "star" and k % 2 else 1) for k in range(corners)]
            angles = [turn + 2 * np.pi * k / corners for k in range(corners)]
            draw.polygon([(cx + r * np.cos(t), cy + r * np.sin(t)) for r, t in zip(radii, angles)], fill)
        tags.append(name)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX)), list(dict.fromkeys(tags))


def writing(rng: np.random.Generator, side: int, background: Pixels | None = None) -> Tagged:
    """A few words in Pillow's own font."""
    image = Image.fromarray(gradient(rng, side)[0] if background is None else background)
    draw, luma = ImageDraw.Draw(image), float(np.asarray(image.convert("L")).mean())
    for _ in range(rng.integers(1, 5)):
        shade = rng.integers(0, 90, 3) if luma > 128 else rng.integers(165, 256, 3)
        font = ImageFont.load_default(size=float(rng.uniform(12, side / 3)))
        place = (float(rng.uniform(-0.1, 0.6) * side), float(rng.uniform(0, 0.8) * side))
        draw.text(place, str(rng.choice(WORDS)), tuple(int(v) for v in shade), font)
    return np.asarray(image), ["text"]


def paste(rng: np.random.Generator, side: int, cut_out: Image.Image, background: Pixels) -> Pixels:
    """An RGBA cut-out on a background that is more or less out of focus, with a soft shadow."""
    ground = Image.fromarray(background).filter(ImageFilter.GaussianBlur(float(rng.choice([0, 2, 5]))))
    size = rng.uniform(0.5, 1.05) * side
    scale = size / max(cut_out.size)
    thing = cut_out.resize((max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale))), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x = int(rng.integers(min(0, side - thing.width), max(1, side - thing.width + 1)))
    y = int(rng.integers(min(0, side - thing.height), max(1, side - thing.height + 1)))
    alpha = thing.getchannel("A")
    shadow = Image.new("L", ground.size)
    shadow.paste(alpha.point(lambda v: v // 3), (x + 3, y + 4))
    ground.paste((0, 0, 0), None, shadow.filter(ImageFilter.GaussianBlur(4)))
    ground.paste(thing.convert("RGB"), (x, y), alpha)
    return np.asarray(ground)


def fractal(rng: np.random.Generator, side: int, power: float) -> np.ndarray:
    """Noise (side, side) in [0, 1] whose amplitude falls with frequency to the given power."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency**power, (side, side))
    low, high = np.quantile(noise, [0.01, 0.99])
    return np.clip((noise - low) / (high - low), 0, 1)


KINDS: dict[str, Callable[[np.random.Generator, int], Tagged]] = {
    "gradient": gradient,
    "texture": texture,
    "shapes": shapes,
    "writing": writing,
}


def _edge(value: np.ndarray, sharpness: float) -> np.ndarray:
    return np.clip(0.5 + sharpness * value, 0, 1)


def _uint8(values: np.ndarray) -> Pixels:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
