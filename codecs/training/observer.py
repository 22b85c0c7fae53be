"""What a caller hears of the training of a stage while it goes on."""

from __future__ import annotations

from collections.abc import Mapping


class Observer:
    """Base class of observers; each method does nothing until a subclass overrides it. Only the main process calls them."""

    def begin(self, first: int) -> None:
        """The steps begin.

        Args:
            first: number of steps that an earlier run has taken.
        """

    def step(self, done: int, terms: Mapping[str, float], loss: float) -> None:
        """A step was taken.

        Args:
            done: number of steps that are done.
            terms: the loss terms of the step, means over the batches of all processes.
            loss: their weighted sum, which is minimised.
        """

    def tell(self, sentence: str) -> None:
        """Something happened that the user should know, such as where a run resumes."""
