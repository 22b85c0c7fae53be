"""Answers of models that think aloud, in the tags that models use and in damaged ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.tasks.answers import final_answer
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.openset import OpenSet

from .test_outputs import IDS, IMAGES, Prepared, Toy, Words, panoptic_file  # noqa: F401  The fixture writes the label map.


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a horse", "a horse"),
        (" a horse\n", "a horse"),
        ("<think>a dog?</think>a horse", "a horse"),
        ("<think>\n</think>\n\na horse", "a horse"),
        ("<think>a dog?</think>a <think>b</think>horse", "a horse"),
        ("a dog?</think>a horse", "a horse"),
        ("a horse<think>or a dog", "a horse"),
        ("<think>a dog", ""),
        ("<Thinking >a dog?</ thinking>a horse", "a horse"),
        ("<think><think>a</think> dog?</think>a horse", "a horse"),
        ('<think duration="3">a dog?</think>a horse', "a horse"),
        ("<reasoning>a dog?</reasoning><answer>a horse</answer>.", "a horse"),
        ("<answer>a dog</answer> no, <answer>a horse</answer>", "a horse"),
        ("<answer>a horse", "a horse"),
        ("◁think▷a dog?◁/think▷a horse", "a horse"),
        ("[THINK]a dog?[/THINK]a horse", "a horse"),
        ("<thinker> a horse", "<thinker> a horse"),
        ("I think < 3 horses", "I think < 3 horses"),
        ("", ""),
    ],
)
def test_only_the_answer_is_kept(text, answer):
    assert final_answer(text) == answer


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "◁think▷", "◁/think▷", "dog ", "<", ">", "/", "\n"]), max_size=12)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(before=PIECES, thought=PIECES)
def test_an_answer_after_a_closed_thought_is_found_whatever_came_before(before, thought):
    """The same holds for nested, unclosed and stray tags before it, and nothing of the thought is left."""
    text = "".join(before) + "<think>SECRET" + "".join(thought) + "</think></think>a horse"
    assert final_answer(text) == "a horse"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(answer=st.text(st.characters(codec="utf-8", exclude_characters="<[◁")))
def test_a_text_without_tags_is_the_answer(answer):
    assert final_answer(answer) == answer.strip()


def test_a_thought_names_no_region():
    names = [["<think>a bee, or a cat?</think>ant", "bee, no</think>bee", "<answer>bee</answer>"] for _ in IDS]
    plain = [["ant", "bee", "bee"] for _ in IDS]
    tasks = [OpenSet(Toy(), Prepared(answers), embedder=Words()) for answers in (names, plain)]
    first, second = (task.predict(IMAGES, IDS) for task in tasks)
    for thought, said in zip(first, second, strict=True):
        assert thought["answers"] == said["answers"] and np.array_equal(thought["similarity"], said["similarity"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0])
def test_an_embedder_that_fails_is_named(bad):
    class Bad(Words):
        def embed_texts(self, texts):
            return super().embed_texts(texts) * bad

    with pytest.raises(
        ModelError, match=r"There is a ant in the scene\.: model Bad gave embeddings (that are not finite|of length 0)"
    ):
        OpenSet(Toy(), Prepared([["ant"] * 3 for _ in IDS]), embedder=Bad()).predict(IMAGES, IDS)
