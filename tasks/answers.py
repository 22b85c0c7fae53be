"""What a language model answers, apart from what it thinks on the way and the tags that it puts around its answer."""

from __future__ import annotations

import re

# Tags between which models think: <think> (Qwen, GLM, DeepSeek), ◁think▷ (Kimi), [THINK] (Mistral), <reasoning> and their like.
_WORDS = "think|thinking|thought|thoughts|reason|reasoning|reflection|analysis"
_THINKING = re.compile(
    rf"(?P<xml><\s*(?P<xml_end>/?)\s*(?i:{_WORDS})\b[^<>]*>)|(?P<kimi>◁(?P<kimi_end>/?)think▷)|(?P<brackets>\[(?P<brackets_end>/?)THINK\])"
)
_ANSWER = re.compile(r"<\s*answer\s*>(.*?)(?:<\s*/\s*answer\s*>|\Z)", re.DOTALL | re.IGNORECASE)


def final_answer(text: str) -> str:
    """The answer in a model's text, without surrounding white space.

    What stands between the tags of a thought is left out, and so is all that follows a thought that is not closed, because the
    answer was cut off before it began. Chat templates may open the thought themselves: then all before its end is thought too. If
    the answer stands in `<answer>` tags, only the last of them counts.

    Args:
        text: what the model wrote.

    Returns:
        The answer; empty if the model only thought.

    Example:
        >>> final_answer("<think>A dog? No.</think> a cat "), final_answer("A dog? No.</think>a cat"), final_answer("<think>A dog")
        ('a cat', 'a cat', '')
    """
    parts: list[str] = []
    thinking, start = False, 0
    for tag in _THINKING.finditer(text):
        if not thinking:
            parts.append(text[start : tag.start()])
        start = tag.end()
        closes = bool(tag["xml_end"] or tag["kimi_end"] or tag["brackets_end"])
        if closes and not thinking:
            parts.clear()
        thinking = not closes
    if not thinking:
        parts.append(text[start:])
    answer = "".join(parts)
    tagged = _ANSWER.findall(answer)
    return (tagged[-1] if tagged else answer).strip()
