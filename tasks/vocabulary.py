"""A vocabulary of category names as sentences, and how near to each category an answer in words comes.

    names with synonyms -> "There is a {synonym} in the scene." --embedded--+
    answer -----------------------------------------------------embedded----+-> cosine -> nearest synonym of each category

The sentences are embedded once for all answers, so that a task can store them as its context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from icmbench.tasks.embeddings import normalise_rows
from icmbench.tasks.outputs import RowOutput
from icmbench.tasks.text_embedder import TextEmbedder

TEMPLATE = "There is a {} in the scene."


class Vocabulary:
    """The names of categories, and the embedder that compares answers with them.

    Args:
        names: a name for each category, which may list synonyms between commas.
        embedder: a model with `embed_texts`.

    Attributes:
        sentences: one for each synonym of each category, in their order.
    """

    def __init__(self, names: Sequence[str], embedder: TextEmbedder) -> None:
        self._embedder = embedder
        synonyms = [[synonym.strip() for synonym in name.split(",")] for name in names]
        self.sentences = [TEMPLATE.format(synonym) for category in synonyms for synonym in category]
        self._first_sentence = np.cumsum([0, *(len(category) for category in synonyms)])[:-1]  # Of each category.

    def embed_sentences(self) -> npt.NDArray[np.float32]:
        """Embeddings of the sentences as rows of unit length, float32 (sentences, d)."""
        return self._embed(self.sentences)

    def similarity(self, answers: list[str], sentences: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Cosine of each answer and the nearest synonym of each category.

        Args:
            answers: texts.
            sentences: the result of `embed_sentences`.

        Returns:
            float32 (answers, categories).

        Raises:
            ModelError: the embedder gave other than finite embeddings of the sentences' width.
        """
        if not answers:
            return np.zeros((0, len(self._first_sentence)), np.float32)
        return np.maximum.reduceat(self._embed(answers, sentences.shape[1]) @ sentences.T, self._first_sentence, axis=1)

    def _embed(self, texts: list[str], width: int | None = None) -> npt.NDArray[np.float32]:
        """Embeddings of texts as rows of unit length, float32 (texts, d). Only an empty text may have one of zeros."""
        output = RowOutput(self._embedder)
        rows = output.embeddings(self._embedder.embed_texts(texts), texts, width, may_be_zero=lambda text: not text.strip())
        return normalise_rows(rows, np.float32)
