"""What a process does that holds the models: it answers requests for predictions, and runs codecs whose networks are on a GPU.

coder process: read, encode, decode, store          model process: ModelHost
    RemoteTask.predict(images)    -- request -->    task.predict(images)
    Series.encode, Series.decode  -- request -->    the same, for codecs on a GPU
    Series.reconstruct            -- request -->    the same, for codecs on a GPU that estimate their rate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from icmbench.harness.work.attempt import free_memory, is_out_of_memory
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import Series
from icmbench.tasks.base import Image


@dataclass(frozen=True)
class Request:
    """One call of a task or codec.

    Attributes:
        kind: what is called.
        name: label of the task, or name of the series.
        ids: the images, but for `decode`.
        images: their pixels, uint8 (height, width, 3) each; for `decode` none.
        originals: source pixels of the same images, if the task needs them.
        streams: what to decode.
    """

    kind: Literal["predict", "encode", "decode", "reconstruct"]
    name: str
    ids: Sequence[str] = ()
    images: Sequence[Any] = ()
    originals: Sequence[Any] | None = None
    streams: Sequence[bytes] = ()

    @property
    def count(self) -> int:
        """Number of images or streams."""
        return len(self.images) or len(self.streams)


class ModelHost:
    """Answers requests with the tasks and codecs of an experiment, each of which is built once.

    Args:
        bench: the experiment.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._series = {series.name: series for series in bench.series if isinstance(series, Series)}
        for label in bench.tasks:
            bench.load_context(label)

    def answer(self, request: Request) -> list[Any]:
        """Carry out a request whose `images` and `originals` are arrays.

        Returns:
            Predictions, streams, or reconstructions, one per image; for `reconstruct` pixels and bits of each in turn. Raises what
            the task or codec raises; after an error for want of memory its cache is emptied, because the caller tries a smaller
            batch next.
        """
        try:
            return list(self._answer(request))
        except Exception as error:
            if is_out_of_memory(error):
                free_memory()
            raise

    def _answer(self, request: Request) -> Sequence[Any]:
        if request.kind == "encode":
            with self._bench.activity.noting(f"encoding {request.count} by {request.name}"):
                return self._series[request.name].encode(request.images, request.ids)
        if request.kind == "decode":
            with self._bench.activity.noting(f"decoding {request.count} by {request.name}"):
                return self._series[request.name].decode(request.streams)
        if request.kind == "reconstruct":
            with self._bench.activity.noting(f"coding {request.count} by {request.name}"):
                pairs = self._series[request.name].reconstruct(request.images, request.ids)
            return [part for pair in pairs for part in pair]  # Flat, so that pixels cross in memory as those of `decode` do.
        images: Sequence[Image] = request.images
        with self._bench.activity.noting(f"{request.name} on {request.count} images"):
            return self._bench.tasks[request.name].predict(images, request.ids, request.originals)
