"""The README's examples work as printed."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml

from icmbench.codecs.base import BitstreamError
from icmbench.harness.config.experiment import Experiment

README = (Path(__file__).parent.parent / "README.md").read_text()


def code_block(first_line):
    """The README's indented block that begins with a line."""
    lines = README[README.index(first_line) :].split("\n")
    end = next((k for k, line in enumerate(lines[1:], 1) if line and not line.startswith("    ")), len(lines))
    return textwrap.dedent("    " + "\n".join(lines[:end]).lstrip())


def test_the_codec_takes_under_20_lines_and_works():
    code = code_block("# my_codec.py").split("# pyproject.toml")[0]
    body = code[code.index("class MyCodec") :].split("\n")
    assert len([line for line in body if line.strip()]) <= 20
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    codec = namespace["MyCodec"](30)
    image = np.random.default_rng(0).integers(0, 255, (33, 47, 3), dtype=np.uint8)
    data = codec.compress(image)
    assert codec.decompress(data).shape == image.shape
    assert codec.point.label == "quality=30"
    with pytest.raises(BitstreamError):
        codec.decompress(data[:20])


def test_the_experiment_is_valid():
    text = code_block("name: baselines").split("icmbench plan")[0]
    assert Experiment(**yaml.safe_load(text)).anchor == "jpeg"


@pytest.mark.parametrize("first_line", ["- name: command", "- {name: folder"])
def test_the_codecs_without_code_are_valid_sections(first_line):
    codecs = yaml.safe_load(code_block(first_line))
    assert (
        Experiment(name="x", datasets={"d": {"kind": "images"}}, codecs=codecs, tasks=[{"name": "fidelity", "dataset": "d"}])
        .codecs[0]
        .points
    )
