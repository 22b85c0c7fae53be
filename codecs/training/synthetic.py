"""Pictures drawn at random, with tags that describe them: gradients, textures, shapes, words, and cut-outs pasted on a background.

The functions `draw_...` take a NumPy generator and a side length in pixels, and return a picture, uint8 (side, side, 3), with its
tags.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Picture = np.ndarray  # uint8 (H, W, 3)
TaggedPicture = tuple[Picture, list[str]]

WORDS = (
    "ART", "BIKE", "BUS", "CAFE", "CITY", "CODEC", "DOG", "EXIT", "FISH", "HOTEL", "IMAGE", "MILK",
    "NORTH", "OPEN", "PARK", "RATE", "SALE", "STOP", "TAXI", "TREE", "ZOO", "12", "24", "365",
)  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "line")
TEXTURES = ("stripes", "checkerboard", "dots", "clouds", "bricks", "waves")


def draw_gradient(rng: np.random.Generator, side: int) -> TaggedPicture:
    """Draw two or three colours that blend into one another along a random direction."""
    angle, count = rng.uniform(0, 2 * np.pi), rng.integers(2, 4)
    y, x = np.mgrid[:side, :side] / (side - 1) - 0.5
    position = np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1)
    stops, colours = np.linspace(0, 1, count), rng.uniform(0, 255, (count, 3))
    return _round_to_uint8(np.stack([np.interp(position, stops, colours[:, c]) for c in range(3)], -1)), ["gradient"]


def draw_texture(rng: np.random.Generator, side: int) -> TaggedPicture:
    """Draw a repeated or random pattern of two colours, rotated by a random angle."""
    name, period = TEXTURES[rng.integers(len(TEXTURES))], rng.uniform(6, 40)
    angle = rng.uniform(0, np.pi) if name != "bricks" else 0.0
    y, x = np.mgrid[:side, :side].astype(float)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    sharpness = rng.uniform(0.5, 4)  # Slope of the edges.
    if name == "clouds":
        mix = fractal_noise(rng, side, rng.uniform(0.8, 1.6))
    elif name == "stripes":
        mix = _edge(np.sin(2 * np.pi * u / period), sharpness)
    elif name == "waves":
        mix = _edge(np.sin(2 * np.pi * (u + period / 3 * np.sin(2 * np.pi * v / period / 2)) / period), sharpness)
    elif name == "checkerboard":
        mix = _edge(np.sin(np.pi * u / period) * np.sin(np.pi * v / period), 2 * sharpness)
    elif name == "dots":
        mix = _edge(np.cos(2 * np.pi * u / period) + np.cos(2 * np.pi * v / period) - 0.6, sharpness)
    else:
        row = np.floor(v / period)
        mortar = np.minimum(np.abs(v / period % 1 - 0.5), 2 * np.abs((u / period / 2 + row / 2) % 1 - 0.5))
        mix = _edge(0.42 - mortar, 8 * sharpness)
    a, b = rng.uniform(0, 255, (2, 3))
    grain = rng.normal(0, rng.uniform(0, 8), (side, side, 1))
    return _round_to_uint8(a + (b - a) * mix[..., None] + grain), [name]


def draw_shapes(rng: np.random.Generator, side: int, background: Picture | None = None) -> TaggedPicture:
    """Draw up to five filled shapes on a background (side, side, 3), by default a gradient.

    They are drawn at twice the size and then reduced, so that edges are smooth.
    """
    background = draw_gradient(rng, side)[0] if background is None else background
    image = Image.fromarray(background).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
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


def draw_words(rng: np.random.Generator, side: int, background: Picture | None = None) -> TaggedPicture:
    """Write one to four words in Pillow's default font on a background (side, side, 3), by default a gradient."""
    image = Image.fromarray(draw_gradient(rng, side)[0] if background is None else background)
    draw, luma = ImageDraw.Draw(image), float(np.asarray(image.convert("L")).mean())
    for _ in range(rng.integers(1, 5)):
        shade = rng.integers(0, 90, 3) if luma > 128 else rng.integers(165, 256, 3)
        font = ImageFont.load_default(size=float(rng.uniform(12, side / 3)))
        position = (float(rng.uniform(-0.1, 0.6) * side), float(rng.uniform(0, 0.8) * side))
        draw.text(position, str(rng.choice(WORDS)), tuple(int(v) for v in shade), font)
    return np.asarray(image), ["text"]


def paste_cut_out(rng: np.random.Generator, side: int, cut_out: Image.Image, background: Picture) -> Picture:
    """Paste a cut-out with a soft shadow, at a random size and position, on a background that may be out of focus.

    Args:
        rng: the random generator.
        side: side of the picture in pixels.
        cut_out: an RGBA image of any size.
        background: uint8 (side, side, 3).
    """
    canvas = Image.fromarray(background).filter(ImageFilter.GaussianBlur(float(rng.choice([0, 2, 5]))))
    size = rng.uniform(0.5, 1.05) * side
    scale = size / max(cut_out.size)
    width, height = max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale))
    scaled = cut_out.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x = int(rng.integers(min(0, side - scaled.width), max(1, side - scaled.width + 1)))
    y = int(rng.integers(min(0, side - scaled.height), max(1, side - scaled.height + 1)))
    alpha = scaled.getchannel("A")
    shadow = Image.new("L", canvas.size)
    shadow.paste(alpha.point(lambda v: v // 3), (x + 3, y + 4))
    canvas.paste((0, 0, 0), None, shadow.filter(ImageFilter.GaussianBlur(4)))
    canvas.paste(scaled.convert("RGB"), (x, y), alpha)
    return np.asarray(canvas)


def fractal_noise(rng: np.random.Generator, side: int, power: float) -> np.ndarray:
    """Make noise (side, side) float64 in [0, 1] whose amplitude falls as 1 / frequency^power."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency**power, (side, side))
    low, high = np.quantile(noise, [0.01, 0.99])
    return np.clip((noise - low) / (high - low), 0, 1)


# What can be drawn. The names are part of the file names in the training set.
SUBJECTS: dict[str, Callable[[np.random.Generator, int], TaggedPicture]] = {
    "gradient": draw_gradient,
    "texture": draw_texture,
    "shapes": draw_shapes,
    "writing": draw_words,
}


def _edge(value: np.ndarray, sharpness: float) -> np.ndarray:
    """0 where `value` is low, 1 where it is high, with a ramp of the given slope around 0."""
    return np.clip(0.5 + sharpness * value, 0, 1)


def _round_to_uint8(values: np.ndarray) -> Picture:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
