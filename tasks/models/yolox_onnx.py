"""YOLOX detectors exported to ONNX (Ge et al. 2021), COCO's 80 categories.

    image -> letterbox (bilinear, 114 at the right and bottom) -> BGR float 0..255 -> network
          -> raw (cx, cy, w, h, objectness, 80 scores) per cell of strides 8, 16, 32 -> decoded boxes -> NMS per class

The bilinear filter is Pillow's, whose kernel grows with the reduction when an image is made smaller.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.batches import picture
from icmbench.tasks.models.coco_names import COCO
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.models.threads import cpu_threads

if TYPE_CHECKING:
    import onnxruntime

STRIDES = (8, 16, 32)
PADDING = 114  # Grey of the canvas around the image, as in training.


class YoloxOnnx:
    """YOLOX detector (nano to x, COCO's 80 categories) from an ONNX file with raw outputs.

    Called on images it returns one mapping per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels of the image, not clipped
    to it, `scores` float32 (n,) and `classes` int64 (n,) as indices into `categories`. A score is objectness times class score.
    A cell gives one candidate for each class that scores above `score_threshold`, as in YOLOX's own evaluation.

    Args:
        path: ONNX file with raw outputs, exported at a fixed size whose sides are multiples of 32.
        score_threshold: candidates with this score or a lower one are dropped; from 0 to 1. The default is low because AP counts
            uncertain boxes too.
        nms_threshold: intersection over union above which the weaker of two boxes of one class is dropped; from 0 to 1.
        threads: CPU threads of onnxruntime; by default OMP_NUM_THREADS or all usable cores.

    Raises:
        ModelError: there is no such file.
    """

    task: ClassVar[str] = "detection"
    extra: ClassVar[str] = "onnx"
    weights: ClassVar[str] = "`path` to an ONNX export of YOLOX without --decode_in_inference (the YOLOX project's are Apache-2.0)"
    categories: ClassVar[list[str]] = list(COCO.values())

    def __init__(self, path: Path, score_threshold: float = 0.01, nms_threshold: float = 0.45, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelError(f"{self.path}: no such ONNX file; give the `path` of a YOLOX export")
        self.score_threshold, self.nms_threshold, self.threads = score_threshold, nms_threshold, threads

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            model="yolox-onnx",
            version=1,
            file=file_sha256(self.path),
            **({"external": external} if (external := external_sha256(self.path)) else {}),
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            **versions("onnxruntime", "pillow"),
        )

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The network in float32 on the CPU, loaded when first used.

        Raises:
            ModelError: onnxruntime cannot load the file, or the shape of its input or output is not that of YOLOX.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cpu_threads(self.threads)
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no narrower base class in common.
            raise ModelError(f"{self.path}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error
        shape, outputs = session.get_inputs()[0].shape, session.get_outputs()
        if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) and side % STRIDES[-1] == 0 for side in shape[2:]):
            raise ModelError(
                f"{self.path}: its input is {shape}, not (1, 3, height, width) in multiples of 32; export it at a fixed size"
            )
        cells = sum(shape[2] // stride * (shape[3] // stride) for stride in STRIDES)
        if list(outputs[0].shape[1:]) != [cells, 5 + len(self.categories)]:
            raise ModelError(
                f"{self.path}: its output is {outputs[0].shape}, not (1, {cells}, {5 + len(self.categories)}) as YOLOX's"
            )
        return session

    def __call__(self, images: Sequence[Image]) -> list[dict[str, npt.NDArray[Any]]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> dict[str, npt.NDArray[Any]]:
        model_input = self.session.get_inputs()[0]
        height, width = model_input.shape[2:]
        pixels, scale = letterbox(image, height, width)
        raw = self.session.run(None, {model_input.name: pixels})[0][0]
        corners, class_scores = decode(raw, height, width)
        cells, classes = np.nonzero(class_scores > self.score_threshold)
        boxes, scores = corners[cells] / np.float32(scale), class_scores[cells, classes]
        kept = suppress(boxes, scores, classes, self.nms_threshold)
        return {"boxes": boxes[kept], "scores": scores[kept], "classes": classes[kept].astype(np.int64)}


def external_sha256(path: Path) -> dict[str, str]:
    """SHA-256 of the files beside an ONNX file that hold tensors of it, by the names that it gives them.

    ONNX may keep weights in other files ("external data"). Each tensor then holds an entry of the protobuf message
    StringStringEntryProto with the key `location` and the file's name, relative to the folder; the entries are found by their
    bytes, since the package onnx is not needed for anything else.

    Args:
        path: ONNX file.

    Returns:
        Hex digits by name; empty for a model in one file.
    """
    stat = path.stat()
    names = _external_names(str(path), stat.st_size, stat.st_mtime_ns)
    return {name: file_sha256(path.parent / name) for name in names if (path.parent / name).is_file()}


@cache
def _external_names(path: str, size: int, mtime_ns: int) -> list[str]:
    if not size:
        return []
    names: set[str] = set()
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for entry in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]?[\x00-\x7f])", content):
            low, high = entry[1][0] & 127, entry[1][1] if len(entry[1]) > 1 else 0  # The name's length, 7 bits to a byte.
            name = content[entry.end() : entry.end() + low + 128 * high]
            names.add(name.decode("utf-8", "replace"))
    return sorted(name for name in names if name and "\0" not in name)


def letterbox(image: Image, height: int, width: int) -> tuple[npt.NDArray[np.float32], float]:
    """Resize an image into the top left corner of the network's input.

    Args:
        image: uint8 (rows, columns, 3), RGB.
        height: height of the network's input, in pixels.
        width: width of the network's input, in pixels.

    Returns:
        The input, float32 (1, 3, height, width) in BGR order from 0 to 255, and the factor by which the image was resized.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = (max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale)))
    canvas = np.full((height, width, 3), PADDING, dtype=np.uint8)
    canvas[: inner[1], : inner[0]] = np.asarray(picture(image).resize(inner, Pillow.Resampling.BILINEAR))
    return np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)[None], dtype=np.float32), scale


def decode(raw: npt.NDArray[np.float32], height: int, width: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Turn raw outputs into boxes and scores (Ge et al. 2021, section 2.1).

    Args:
        raw: float32 (cells, 5 + classes), cells in row-major order from stride 8 to stride 32. The columns are the centre's offset
            from the cell and the logarithm of the size, both in units of the stride, then objectness and class scores from 0 to 1.
        height: height of the network's input, in pixels.
        width: width of the network's input, in pixels.

    Returns:
        Boxes float32 (cells, 4) as x1, y1, x2, y2 in pixels of the network's input, and scores float32 (cells, classes).
    """
    grids = [np.mgrid[: height // stride, : width // stride][::-1].reshape(2, -1).T for stride in STRIDES]
    strides = np.concatenate([np.full((len(grid), 1), stride, np.float32) for grid, stride in zip(grids, STRIDES)])
    centres = (raw[:, :2] + np.concatenate(grids).astype(np.float32)) * strides
    halves = np.exp(raw[:, 2:4]) * strides / 2
    return np.concatenate([centres - halves, centres + halves], axis=1), raw[:, 4:5] * raw[:, 5:]


def suppress(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], classes: npt.NDArray[np.integer], threshold: float
) -> npt.NDArray[np.int64]:
    """Non-maximum suppression within each class.

    Args:
        boxes: float32 (n, 4) as x1, y1, x2, y2.
        scores: float32 (n,).
        classes: integers (n,), class indices.
        threshold: largest intersection over union that a box may have with a better kept box of its class.

    Returns:
        Indices of the kept boxes by falling score; of equal scores the earlier box comes first.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].astype(np.float64).T
    areas = (x2 - x1) * (y2 - y1)
    labels = classes[order]
    kept = np.ones(len(order), dtype=bool)
    for i in range(len(order)):
        if kept[i]:
            later = np.flatnonzero(kept[i + 1 :] & (labels[i + 1 :] == labels[i])) + i + 1
            overlap_width = np.minimum(x2[i], x2[later]) - np.maximum(x1[i], x1[later])
            overlap_height = np.minimum(y2[i], y2[later]) - np.maximum(y1[i], y1[later])
            intersection = np.maximum(overlap_width, 0) * np.maximum(overlap_height, 0)
            kept[later[intersection > threshold * (areas[i] + areas[later] - intersection)]] = False
    return order[kept]
