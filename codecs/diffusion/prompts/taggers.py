"""From the options of a codec to its guide by tags: the vocabulary's file, tags that a file holds, and who recognises tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.prompts.sources import read_json, read_text
from icmbench.codecs.diffusion.prompts.tags import RAM_TAG_LIST, Tagger, TagGuide


def build_tag_guide(
    vocabulary: Path | None,
    tags: Sequence[str] | Path | None = None,
    tagger: Tagger | Path | None = None,
    device: str = "cpu",
) -> TagGuide:
    """The guide by tags that options describe.

    Args:
        vocabulary: A text file with one tag per line. None takes the tag list in the tagger's folder, if `tagger` is a folder.
        tags: Tags for all images, or a JSON file {image id: [tag, ...]}.
        tagger: See `build_tagger`.
        device: Where RAM++ runs, as torch names it.

    Raises:
        CodecError: a file cannot be read or has another layout, or a tag is not in the vocabulary.
    """
    if vocabulary is None and isinstance(tagger, Path):
        vocabulary = tagger / RAM_TAG_LIST
    recognise = build_tagger(tagger, device)
    words = [] if vocabulary is None else [line.strip() for line in read_text(vocabulary).rstrip().splitlines()]
    return TagGuide(words, (_read_tags(tags) if isinstance(tags, Path) else tags) or (), recognise)


def _read_tags(path: Path) -> Mapping[str, list[str]]:
    tags = read_json(path, "{image id: [tag, ...]}")
    if not isinstance(tags, dict) or not all(isinstance(image_tags, list) for image_tags in tags.values()):
        raise CodecError(f"{path}: a file of tags holds {{image id: [tag, ...]}}, in JSON")
    return tags


def build_tagger(option: Tagger | Path | None, device: str = "cpu") -> Tagger | None:
    """The tagger that an option names.

    Args:
        option: A folder with RAM++'s checkpoint and tag lists, a function from image to vocabulary indexes, or None for no tagger.
        device: Where RAM++ runs, as torch names it.

    Raises:
        CodecError: the folder lacks a file of RAM++.
    """
    if not isinstance(option, Path):
        return option
    from icmbench.codecs.diffusion.prompts.ram import RamPlus

    return RamPlus(option, device)
