"""The options of the four codecs: flat for callers and experiment files, and the same as before they were grouped."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest

from icmbench.codecs.cadc import PROMPT, Cadc
from icmbench.codecs.diff_icmh import DiffIcmh
from icmbench.codecs.diffusion.options import MODEL_DEFAULTS, RUNTIME_DEFAULTS, SamplingOptions, flat_options
from icmbench.codecs.resulic import NEGATIVE, SUFFIX, Resulic
from icmbench.codecs.slim import Slim
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind

MODEL_OPTION = str | Path | Mapping[str, Any] | Callable[..., Any] | None

# Name: (type, default) of every option that experiment files may set.
SHARED = {
    "profile": (Literal["sd21", "tiny"], "sd21"),
    "weights": (Literal["random"] | Path | None, None),
    "backbone": (str | None, None),
    "colour": (Literal["none", "wavelet"], "none"),
    "mode": (Literal["default", "portable"], "default"),
    "dtype": (Literal["float32", "bfloat16", "float16"] | None, None),
    "device": (str | None, None),
    "tile": (int, 96),
    "overlap": (int, 32),
    "batch": (int, 8),
    "compile": (bool, False),
}
OPTIONS = {
    Cadc: {
        "point": (float, 2),
        "captioner": (MODEL_OPTION, None),
        "prompt": (str, PROMPT),
        "ugaq": (bool, True),
        "uncertainty_channels": (int | None, None),
        "delta": (float | None, None),
    },
    DiffIcmh: {
        "point": (float, 2),
        "sampler": (Literal["ddpm", "ddim"], "ddpm"),
        "tags": (list[str] | Path | None, None),
        "tagger": (Path | Callable[..., Any] | None, None),
        "vocabulary": (Path | None, None),
        "steps": (int | None, None),
        "cfg": (float, 5.0),
        "seed": (int, 0),
    },
    Resulic: {
        "point": (float, 36),
        "noise_level": (int | None, None),
        "eta": (Literal[0, 1], 0),
        "cdm": (bool, True),
        "ans": (bool, False),
        "suffix": (str, SUFFIX),
        "negative": (str, NEGATIVE),
        "captions": (str | Path, ""),
        "residuals": (str | Path | None, None),
        "captioner": (MODEL_OPTION, None),
        "llm": (MODEL_OPTION, None),
        "pfo": (bool | dict[str, Any], False),
        "text": (Literal["prior", "clip16", "utf8", "deflate", "zlib", "smallest"], "prior"),
        "steps": (int | dict[float, int] | None, None),
        "cfg": (float, 2.5),
        "seed": (int, 0),
    },
    Slim: {
        "point": (float, 1),
        "control": (Literal["light", "full"], "light"),
        "sampler": (Literal["ddim", "ddpm", "none"], "ddim"),
        "noise_level": (int, 999),
        "captions": (str | Path, ""),
        "captioner": (MODEL_OPTION, None),
        "roi": (str | Path | Callable[..., Any], "resnet50"),
        "roi_threshold": (float, 0.15),
        "roi_scale": (Literal["max", "minmax"], "max"),
        "text": (Literal["smallest", "utf8", "deflate", "zlib", "clip16", "prior"], "smallest"),
        "steps": (int, 3),
        "cfg": (float, 1.0),
        "seed": (int, 0),
    },
}
codecs = pytest.mark.parametrize("codec", OPTIONS, ids=lambda codec: codec.name)


@codecs
def test_signatures_show_every_option_with_type_and_default(codec):
    hints = get_type_hints(codec.__init__)
    parameters = inspect.signature(codec).parameters
    assert {name: (hints[name], parameter.default) for name, parameter in parameters.items()} == OPTIONS[codec] | SHARED
    assert [name for name, parameter in parameters.items() if parameter.kind is not parameter.KEYWORD_ONLY] == ["point"]
    assert not set(OPTIONS[codec]) & set(SHARED)


@codecs
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "huge"}, r"set\.profile: Input should be 'sd21' or 'tiny'"),
        ({"mode": "fast"}, r"set\.mode: Input should be 'default' or 'portable'"),
        ({"tile": "wide"}, r"set\.tile: Input should be a valid integer"),
        ({"weights": "nowhere"}, r"set\.weights: no such file or folder: .*nowhere"),
        ({"profil": "tiny"}, r"profil.*profile"),
        ({"runtime": {}}, r"runtime"),
    ],
)
def test_experiment_files_are_checked_by_the_flat_options(codec, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        bind(codec, options, "set", tmp_path)


@codecs
def test_relative_paths_start_at_the_experiment_file(codec, tmp_path):
    (tmp_path / "weights").mkdir()
    bound = bind(codec, {"weights": "weights", "tile": 64}, "set", tmp_path)
    assert bound == {"weights": tmp_path / "weights", "tile": 64}
    assert bind(codec, {"weights": "random"}, "set", tmp_path) == {"weights": "random"}


@codecs
@pytest.mark.parametrize("name", ["speed", "model", "sampling", "runtime"])
def test_unknown_keywords_and_groups_are_refused(codec, name):
    with pytest.raises(TypeError, match=rf"{codec.__name__}.__init__\(\) got an unexpected keyword argument '{name}'"):
        codec(**{name: 1})


@pytest.mark.parametrize("name", ["steps", "cfg", "seed"])
def test_cadc_has_nothing_to_sample(name):
    with pytest.raises(TypeError, match=name):
        Cadc(2, **{name: 1})


def test_constructors_get_groups_whole_and_keep_their_own_defaults():
    own_default = SamplingOptions(cfg=5.0)

    class Example:
        @flat_options
        def __init__(self, point, *, text="", sampling=own_default, runtime=RUNTIME_DEFAULTS, model=MODEL_DEFAULTS):
            self.values = point, text, sampling, runtime, model

    point, text, sampling, runtime, model = Example(2, steps=4, text="a", device="cpu").values
    assert (point, text, sampling, model) == (2, "a", SamplingOptions(4, 5.0), MODEL_DEFAULTS)
    assert (runtime.device, runtime.tile) == ("cpu", 96)
    assert RUNTIME_DEFAULTS.device is None
    assert Example(point=3).values[0] == 3
    with pytest.raises(TypeError, match=r"missing a required argument: 'point'"):
        Example(steps=4)
