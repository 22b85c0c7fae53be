"""Conversion between RGB images and 10-bit YCbCr planes, the input and output of the video coders.

    uint8 RGB --full-range BT.709--> Y, Cb, Cr in 0..1 --(4:2:0: Cb and Cr halved)--> round(1023 x) --> planar uint16

The conversion runs in float64 and without matrix products, because their sums differ between machines. At 4:4:4 every 8-bit
colour comes back unchanged. At 4:2:0 chroma is resampled both ways with Lanczos' three-lobed kernel; each of its samples lies at
the centre of four luma samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from icmbench.codecs.base import Image

if TYPE_CHECKING:  # As in `base`.
    import numpy as np
    import numpy.typing as npt

Subsampling: TypeAlias = Literal["4:4:4", "4:2:0"]
Plane: TypeAlias = "npt.NDArray[np.floating]"

DEPTH = 10  # bits per sample
PEAK = (1 << DEPTH) - 1  # largest sample
_RED, _BLUE = 0.2126, 0.0722  # weights of luma in ITU-R BT.709-6, item 3.2
_GREEN = 1 - _RED - _BLUE


def to_samples(image: Image, subsampling: Subsampling = "4:4:4") -> npt.NDArray[np.uint16]:
    """The planes Y, Cb and Cr of an image, one after the other.

    Args:
        image: uint8 RGB, (height, width, 3). Both sides are even for 4:2:0.
        subsampling: "4:4:4", or "4:2:0" for chroma planes of half the width and height.

    Returns:
        Little-endian uint16 samples from 0 to PEAK, flat: 3 x height x width of them, or 1.5 x height x width for 4:2:0.
    """
    import numpy as np

    red, green, blue = (image[..., channel] / 255 for channel in range(3))
    luma = _RED * red + _GREEN * green + _BLUE * blue
    chroma: list[Plane] = [(blue - luma) / (2 * (1 - _BLUE)) + 0.5, (red - luma) / (2 * (1 - _RED)) + 0.5]
    if subsampling == "4:2:0":
        height, width = luma.shape
        chroma = [_resized(plane, width // 2, height // 2) for plane in chroma]
    return np.concatenate([np.rint(plane * PEAK).clip(0, PEAK).astype("<u2").ravel() for plane in (luma, *chroma)])


def from_samples(samples: npt.NDArray[np.uint16], width: int, height: int, subsampling: Subsampling = "4:4:4") -> Image:
    """The image of planes that `to_samples` made, up to the loss of the coding.

    Args:
        samples: uint16 samples from 0 to PEAK, flat: the planes Y, Cb and Cr, one after the other.
        width: Width of the image in pixels, even for 4:2:0.
        height: Height of the image in pixels, even for 4:2:0.
        subsampling: "4:4:4", or "4:2:0" for chroma planes of half the width and height.

    Returns:
        uint8 RGB, (height, width, 3).

    Raises:
        ValueError: the number of samples does not fit the size.
    """
    import numpy as np

    chroma_width, chroma_height = (width // 2, height // 2) if subsampling == "4:2:0" else (width, height)
    pixels, size = width * height, chroma_width * chroma_height
    if samples.size != pixels + 2 * size:
        raise ValueError(f"{samples.size} samples, where a {width}x{height} image has {pixels + 2 * size} at {subsampling}")
    luma = samples[:pixels].reshape(height, width) / PEAK
    planes = (samples[start : start + size].reshape(chroma_height, chroma_width) / PEAK for start in (pixels, pixels + size))
    cb, cr = ((_resized(plane, width, height) if subsampling == "4:2:0" else plane) - 0.5 for plane in planes)
    red = luma + 2 * (1 - _RED) * cr
    blue = luma + 2 * (1 - _BLUE) * cb
    green = (luma - _RED * red - _BLUE * blue) / _GREEN
    image = np.empty((height, width, 3), np.uint8)
    for channel, plane in enumerate((red, green, blue)):
        image[..., channel] = np.rint(plane * 255).clip(0, 255)
    return image


def _resized(plane: Plane, width: int, height: int) -> Plane:
    import numpy as np
    from PIL import Image as Pillow

    picture = Pillow.fromarray(plane.astype(np.float32))
    return np.asarray(picture.resize((width, height), Pillow.Resampling.LANCZOS))
