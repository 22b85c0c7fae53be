"""What models say, checked once on its way into every task: the one border between task models and scores.

    model -> output -> check -> arrays of the declared shape, type and range -> Task.predict

Numbers that are not finite would not fail by themselves: every comparison with NaN is false, so that embeddings of NaN once had a
recall of 100 %. Each function returns the output in the type in which it is stored, and names model and image where it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError, Image
from icmbench.tasks.datasets.segmentations import run_counts, run_length_problem
from icmbench.tasks.models.errors import ModelError

Output = Mapping[str, Any]  # A model's output for one image of a detection-like task.

NUMBERS, WHOLE = "iuf", "biuf"  # Kinds of NumPy types, as `dtype.kind` names them; whole numbers are looked at further.


class ModelOutputError(ModelError, DatasetError):
    """A model returned what cannot be scored. Like a bad label, it is data that no score may be made of."""


class ModelOutput:
    """Checks of what one model returns. Errors name the model's class, the image or text, and what is wrong.

    Args:
        model: the model, or a name for a network that is none.
    """

    def __init__(self, model: Any) -> None:
        self.name = model if isinstance(model, str) else type(model).__name__

    def error(self, item: str, problem: str) -> ModelOutputError:
        """The error for one image, text or expression."""
        return ModelOutputError(f"{item}: model {self.name} {problem}; mend the model, its weights or its precision")

    def one_each(self, outputs: Any, items: Sequence[str], noun: str = "image") -> list[Any]:
        """The outputs as a list, one for each item.

        Raises:
            ModelOutputError: the model returned no sequence, or more or fewer outputs than items.
        """
        if isinstance(outputs, (str, bytes, Mapping)) or not isinstance(outputs, Sized):
            raise ModelOutputError(
                f"model {self.name} returned {_described(outputs)}, not one result per {noun}; return a sequence"
            )
        if len(outputs) != len(items):
            raise ModelOutputError(
                f"model {self.name} returned {len(outputs)} results for {len(items)} {noun}s, the first {items[:1]}; "
                f"return one per {noun}, in order"
            )
        return list(outputs)  # type: ignore[call-overload]

    def texts(self, answers: Any, items: Sequence[str], noun: str) -> list[str]:
        """Answers in words, one for each item. Half surrogate pairs, which no file in UTF-8 can hold, become question marks.

        Raises:
            ModelOutputError: an answer is no text, or there is another number of them.
        """
        for item, answer in zip(items, listed := self.one_each(answers, items, noun), strict=True):
            if not isinstance(answer, str):
                raise self.error(item, f"answered with {_described(answer)}, not text")
        return [answer.encode("utf-8", "replace").decode("utf-8") for answer in listed]

    def array(self, item: str, name: str, values: Any, kinds: str = NUMBERS) -> npt.NDArray[Any]:
        """An array of numbers; an empty one may be of any type, because an empty list has none.

        Raises:
            ModelOutputError: the values are no array, or of a type that is not among `kinds`.
        """
        try:
            array = np.asarray(values)
        except (ValueError, TypeError, RuntimeError) as error:  # Rows of several lengths, and tensors on a GPU.
            raise self.error(item, f"gave {name} that are no array ({str(error).splitlines()[0]})") from error
        if array.size and array.dtype.kind not in kinds:
            raise self.error(item, f"gave {name} of type {array.dtype}, not numbers")
        return array

    def finite(self, name: str, value: Any, item: str) -> float:
        """A number that a network computed.

        Raises:
            ModelOutputError: it is not finite.
        """
        number = float(value)
        if not np.isfinite(number):
            raise self.error(item, f"gave a {name} of {number}")
        return number

    def part(self, output: Any, key: str, item: str) -> Any:
        """One entry of a model's output for an image.

        Raises:
            ModelOutputError: the output is no mapping or lacks the entry.
        """
        if not isinstance(output, Mapping) or key not in output or output[key] is None:
            raise self.error(item, f"gave {_described(output)} without `{key}`")
        return output[key]

    def _finite_array(self, item: str, name: str, values: Any) -> npt.NDArray[np.float32]:
        array = self.array(item, name, values)
        with np.errstate(over="ignore"):  # What does not fit into float32 becomes infinite and is refused.
            numbers = array.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise self.error(item, f"gave {name} that are not finite numbers")
        if not numbers.ndim:
            raise self.error(item, f"gave one number as {name}")
        return numbers

    def _whole(self, item: str, name: str, values: Any) -> npt.NDArray[Any]:
        """Whole numbers, in a floating-point type too if no number has a fraction."""
        array = self.array(item, name, values, WHOLE)
        if array.dtype.kind != "f":
            return array
        if not array.size:
            return array.astype(np.int64)
        if not (np.isfinite(array) & (np.rint(array) == array) & (np.abs(array) < 2**53)).all():
            raise self.error(item, f"gave {name} that are not whole numbers")
        return array.astype(np.int64)

    def _check_range(self, item: str, name: str, values: npt.NDArray[Any], categories: int | None) -> None:
        if not values.size:
            return
        low, high = int(values.min()), int(values.max())
        if low < 0 or (categories is not None and high >= categories) or high >= 2**31:
            known = f"0 to {categories - 1}" if categories else "0 or more"
            raise self.error(item, f"gave {name} with the value {low if low < 0 else high}, which is not {known}")

    def _check_each(self, name: str, problem: str, good: npt.ArrayLike, items: Sequence[str]) -> None:
        bad = np.flatnonzero(np.logical_not(good))
        if bad.size:
            raise self.error(items[bad[0]], f"gave {name} {problem} ({len(bad)} of {len(items)} rows)")


class RowOutput(ModelOutput):
    """Checks of models that return one row of numbers for each image or text: scores of classes, features, embeddings."""

    def rows(
        self, name: str, values: Any, items: Sequence[str], columns: int | None = None, axis: str = "columns"
    ) -> npt.NDArray[np.float32]:
        """Finite numbers, one row per item and at least one column.

        Args:
            name: what the numbers are, for the message.
            values: what the model returned.
            items: image ids or texts, one per row.
            columns: how many columns there must be; None for any number.
            axis: what the columns stand for, for the message.

        Returns:
            float32 (items, columns).

        Raises:
            ModelOutputError: the shape is another, or a number is not finite in float32; the first such item is named.
        """
        if not len(items):
            return np.zeros((0, columns or 0), np.float32)
        array = self.array(f"{items[0]} and its batch", name, values)
        if array.ndim != 2 or len(array) != len(items) or array.shape[1] != (columns or max(1, array.shape[1])):
            raise self.error(
                f"{items[0]} and its batch", f"gave {name} of shape {array.shape}, not ({len(items)}, {columns or axis})"
            )
        with np.errstate(over="ignore"):  # What does not fit into float32 becomes infinite and is refused.
            numbers = array.astype(np.float32, copy=False)
        self._check_each(name, "that are not finite numbers", np.isfinite(numbers).all(axis=1), items)
        return numbers

    def embeddings(
        self, values: Any, items: Sequence[str], columns: int | None = None, may_be_zero: Callable[[str], bool] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeddings, one row per item: finite, of one width, and longer than 0, because a zero vector has no direction.

        Args:
            values: what the model returned.
            items: image ids or texts.
            columns: the width of the embeddings that these are compared with; None if there are none yet.
            may_be_zero: the items whose embedding may be zero, such as empty texts; by default none.

        Returns:
            float32 (items, d).

        Raises:
            ModelOutputError: as said above; the first such item is named.
        """
        rows = self.rows("embeddings", values, items, columns)
        long = rows.any(axis=1)
        if may_be_zero is not None and not long.all():
            long |= np.array([may_be_zero(item) for item in items])
        self._check_each("embeddings", "of length 0", long, items)
        return rows


class ObjectOutput(ModelOutput):
    """Checks of models that return boxes, scores and classes, and masks or keypoints with them."""

    def objects(self, output: Any, item: str, categories: int) -> dict[str, npt.NDArray[Any]]:
        """Boxes, scores and classes of the objects in one image.

        Args:
            output: a mapping with `boxes` (n, 4), `scores` (n,) and `classes` (n,).
            item: the image's id.
            categories: how many categories the model has.

        Returns:
            `boxes` float32 (4 n,), `scores` float32 (n,), `classes` int32 (n,).

        Raises:
            ModelOutputError: a key is missing, shapes do not fit together, a box or score is not finite, or a class is no category.
        """
        boxes, scores = (self._finite_array(item, key, self.part(output, key, item)) for key in ("boxes", "scores"))
        classes = self._whole(item, "classes", self.part(output, "classes", item))
        if boxes.shape == scores.shape == (0,):
            boxes = boxes.reshape(0, 4)
        if boxes.shape != (len(scores), 4) or scores.ndim != 1 or classes.shape != scores.shape:
            raise self.error(item, f"gave boxes {boxes.shape}, scores {scores.shape} and classes {classes.shape}")
        self._check_range(item, "classes", classes, categories)
        return {"boxes": boxes.ravel(), "scores": scores, "classes": classes.astype(np.int32)}

    def keypoints(self, output: Any, item: str, points: int) -> npt.NDArray[np.float32]:
        """Keypoints of the objects in one image, float32 (n, points, 3), one row per score.

        Raises:
            ModelOutputError: they are missing, not finite, or of another shape.
        """
        keypoints = self._finite_array(item, "keypoints", self.part(output, "keypoints", item))
        objects = len(self.part(output, "scores", item))
        if keypoints.shape == (0,) and not objects:
            keypoints = keypoints.reshape(0, points, 3)
        if keypoints.shape != (objects, points, 3):
            raise self.error(item, f"gave keypoints of shape {keypoints.shape}, not ({objects}, {points}, 3)")
        return keypoints

    def masks(self, output: Any, image: Image, item: str) -> list[bytes]:
        """The run lengths of the objects in one image.

        Args:
            output: a mapping with `masks`, each `{"size": [height, width], "counts": bytes}`, one per score.
            image: uint8 (height, width, 3).
            item: the image's id.

        Returns:
            The compressed `counts` of each mask.

        Raises:
            ModelOutputError: a mask is missing or has another size, or its run lengths do not add up to the image's pixels, on
                which pycocotools would not return.
        """
        masks, scores = (self.part(output, key, item) for key in ("masks", "scores"))
        height, width = image.shape[:2]
        if not isinstance(masks, Sized) or isinstance(masks, (str, bytes, Mapping)) or len(masks) != len(scores):
            raise self.error(item, f"gave {_described(masks)} as masks of {len(scores)} objects")
        counts = []
        for number, mask in enumerate(masks):  # type: ignore[arg-type, var-annotated]
            if not isinstance(mask, Mapping) or not {"size", "counts"} <= set(mask):
                raise self.error(item, f"gave {_described(mask)} as mask {number}, not COCO run lengths (size, counts)")
            if not np.array_equal(mask["size"], (height, width)):
                raise self.error(item, f"gave a mask {number} of size {mask['size']} for an image of {(height, width)}")
            runs = mask["counts"].encode("ascii", "replace") if isinstance(mask["counts"], str) else mask["counts"]
            if not isinstance(runs, bytes) or run_counts(runs) is None:
                raise self.error(item, f"gave {_described(runs)} as the counts of mask {number}, not compressed run lengths")
            if problem := run_length_problem({"size": [height, width], "counts": runs}, height, width):
                raise self.error(item, f"gave a mask {number} that {problem}")
            counts.append(runs)
        return counts


class MapOutput(ModelOutput):
    """Checks of models that return a class or a segment for every pixel."""

    def label_map(self, name: str, values: Any, image: Image, item: str, categories: int | None = None) -> npt.NDArray[Any]:
        """A map with a whole number from 0 for every pixel.

        Args:
            name: what the map holds, for the message.
            values: what the model returned for the image.
            image: uint8 (height, width, 3).
            item: the image's id.
            categories: how many categories there are; None if the numbers are ids of segments.

        Returns:
            integers (height, width).

        Raises:
            ModelOutputError: the map has another shape or type, or a value that is no category.
        """
        labels = self._whole(item, name, values)
        if labels.shape != image.shape[:2]:
            raise self.error(item, f"does not fit: its {name} is {labels.shape}, the image {image.shape[:2]}")
        self._check_range(item, name, labels, categories)
        return labels

    def segments(self, output: Any, image: Image, item: str, categories: int) -> dict[str, npt.NDArray[Any]]:
        """Segments of one image: a map of ids with 0 for void, and the class of each id.

        Returns:
            `segments` integers (height, width), `segment_ids` and `classes` int64 (n,).

        Raises:
            ModelOutputError: the map has another size, an id is listed twice or not at all, or a class is no category.
        """
        segments = self.label_map("panoptic map", self.part(output, "segments", item), image, item)
        ids, classes = (self._whole(item, key, self.part(output, key, item)) for key in ("segment_ids", "classes"))
        if ids.ndim != 1 or classes.shape != ids.shape:
            raise self.error(item, f"gave segment_ids {ids.shape} and classes {classes.shape}")
        self._check_range(item, "segment_ids", ids, None)
        self._check_range(item, "classes", classes, categories)
        if len(np.unique(ids)) != len(ids) or 0 in ids:
            raise self.error(item, "lists a segment twice or lists segment 0, which is void, in its segment_ids")
        present = np.flatnonzero(np.bincount(segments.ravel())) if segments.max(initial=0) < 2**20 else np.unique(segments)
        unlisted = np.setdiff1d(
            present, np.append(ids, 0)
        )  # Counting is faster than sorting, but takes memory up to the largest id.
        if unlisted.size:
            raise self.error(
                item, f"is incomplete: its panoptic map holds segment {unlisted[0]}, which its segment_ids do not list"
            )
        return {"segments": segments, "segment_ids": ids.astype(np.int64), "classes": classes.astype(np.int64)}


def _described(value: Any) -> str:
    """The type of a value, and how many entries it has, for a message."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}"
    return f"{len(value)} entries ({type(value).__name__})" if isinstance(value, Sized) else type(value).__name__
