"""The options that the diffusion codecs share, in three groups, and how a constructor takes a group.

    @flat_options
    def __init__(self, point, *, sampler, model=MODEL_DEFAULTS, sampling=SamplingOptions(cfg=5.0)): ...

    DiffIcmh(2, sampler="ddim", profile="tiny", steps=4)        callers, and experiment files, know nothing of groups

A codec writes the groups as parameters, whose defaults are its own, and passes them on whole. Imports nothing heavy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints


@dataclass(frozen=True)
class ModelOptions:
    """Which networks code, and where their weights come from.

    Args:
        profile: Size of the networks. "sd21", the default, is the size of the papers, on Stable Diffusion 2.1-base. "tiny" has the
            same topology at about 3 million parameters, for laptops and tests.
        weights: A folder with one weight file per rate point, or the file of this point. None, the default, takes the file that
            comes with this package; without one, the file that the authors published on the hub, or for tiny random weights.
            "random" needs no files, but its pictures and rates mean nothing.
        backbone: Stable Diffusion 2.1-base: a checkpoint file, a folder in diffusers layout, or a hub repository in that layout.
            None, the default, takes backbone.safetensors beside the weights or in this package; without one, the published
            checkpoint, or for tiny and with random weights a random backbone.
    """

    profile: Literal["sd21", "tiny"] = "sd21"
    weights: Literal["random"] | Path | None = None
    backbone: str | None = None


@dataclass(frozen=True)
class SamplingOptions:
    """How the decoder samples. A stream carries these values if they differ from the defaults of its codec and rate point.

    Args:
        steps: Steps of the sampler, 1 to 1000; time grows with them. None, the default, is the codec's usual number.
        cfg: Scale of classifier-free guidance by the words, from 1 to below 256, rounded to 1/256 as a stream keeps it. 1 is no
            guidance, which saves half of the UNet's work. Each codec has its own default.
        seed: Seed of the noise, 0 to 2**32 - 1. The default of 0 takes no bits in a stream, any other seed 32.
    """

    steps: int | None = None
    cfg: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class RuntimeOptions:
    """How coding runs on this machine, and what of it enters pixels or streams.

    Args:
        colour: "wavelet" replaces the low frequencies of the decoded picture by those of its preview, the hint decoded without
            sampling, so that colours stay true. "none" by default, as in ResULIC's code, which has this option.
        mode: Arithmetic of the entropy coder. A "default" stream, in float32, is sure to decode on the machine that made it, but
            not on another kind of processor. A "portable" stream, in fixed point, decodes on any.
        dtype: Number format of all networks except the latent compressor's, which are float32. None, the default, is bfloat16 on
            CUDA, for speed, and float32 on the CPU.
        device: Where the networks run, as torch names it. None, the default, is CUDA if there is such a device, and the CPU if not.
        tile: Side of a tile in latent positions of 8 pixels, a multiple of 8. A latent with a longer side is sampled in overlapping
            tiles, which bounds the memory; 0 for never. The default of 96 keeps pictures of up to 768 pixels whole.
        overlap: Latent positions that neighbouring tiles share, so that no seam shows; less than `tile`. A third by default.
        batch: Images that are sampled together in decoding. 8 by default; memory grows with it.
        compile: Whether torch compiles the networks, which pays off from some ten images of one size on. False by default.
    """

    colour: Literal["none", "wavelet"] = "none"
    mode: Literal["default", "portable"] = "default"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    tile: int = 96
    overlap: int = 32
    batch: int = 8
    compile: bool = False


MODEL_DEFAULTS = ModelOptions()
RUNTIME_DEFAULTS = RuntimeOptions()


def flat_options(init: Callable[..., None]) -> Callable[..., None]:
    """Let callers of a constructor give the fields of its option groups as keywords of their own.

    An option group is a keyword parameter whose default is an instance of a dataclass. The decorated constructor takes the fields
    of that dataclass instead, with the values of that instance as defaults; the constructor itself gets the group whole. Signature
    and annotations show the flat parameters, so that the harness can check an experiment file by them.

    Args:
        init: An `__init__` whose annotations can be resolved in its module.

    Example:
        >>> class Example:
        ...     @flat_options
        ...     def __init__(self, point: int, *, sampling: SamplingOptions = SamplingOptions(cfg=5.0)) -> None:
        ...         self.sampling = sampling
        >>> Example(2, steps=4).sampling
        SamplingOptions(steps=4, cfg=5.0, seed=0)
        >>> print(inspect.signature(Example))
        (point: int, *, steps: int | None = None, cfg: float = 5.0, seed: int = 0) -> None
        >>> Example(2, speed=4)
        Traceback (most recent call last):
        TypeError: Example.__init__() got an unexpected keyword argument 'speed'
    """
    hints = get_type_hints(init)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(init).parameters.items():
        if is_dataclass(parameter.default):
            groups[name] = parameter.default
            parameters += _flat_parameters(parameter.default)
        else:
            parameters.append(parameter.replace(annotation=hints.get(name, parameter.empty)))
    signature = inspect.Signature(parameters, return_annotation=None)

    @functools.wraps(init)
    def flat_init(self: Any, *args: Any, **options: Any) -> None:
        try:
            signature.bind(self, *args, **options)
        except TypeError as error:
            raise TypeError(f"{init.__qualname__}() {error}") from None
        for name, default in groups.items():
            options[name] = replace(default, **{key: options.pop(key) for key in _field_names(default) if key in options})
        init(self, *args, **options)

    flat_init.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters if parameter.name != "self"}
    flat_init.__annotations__["return"] = None
    vars(flat_init)["__signature__"] = signature
    return flat_init


def _flat_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(type(group))
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(group, name), annotation=hints[name])
        for name in _field_names(group)
    ]


def _field_names(group: Any) -> list[str]:
    return [field.name for field in fields(group)]
