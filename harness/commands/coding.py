"""`icmbench encode`, `decode` and `convert`: commands that turn one file into another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.files import exists, read_bytes, refuse_same_file
from icmbench.harness.config.options import bind
from icmbench.harness.config.settings import parse_yaml, split_setting
from icmbench.harness.store.whole_files import writing
from icmbench.harness.work.attempt import reason

LOSSLESS = (".png", ".ppm", ".bmp", ".tif", ".tiff")


def make_codec(
    name: str,
    settings: Sequence[str],
    point: Any = None,
    extra: Mapping[str, Any] | None = None,
    stated: Mapping[str, Any] | None = None,
) -> Any:
    """Construct a codec from what the command line, and perhaps a stream, say.

    Args:
        name: entry point of the codec.
        settings: values of `--set`, each `KEY=VALUE` with a YAML value.
        point: the rate point. Text is read as YAML; None stands for that of the stream, or else the first of the codec's default
            points.
        extra: further constructor arguments.
        stated: constructor arguments that a stream states, as the codec's `stream_options` returns them.

    Returns:
        The codec.

    Raises:
        UserError: the codec, a setting or the point is unknown or wrong, or differs from what the stream states.
    """
    plugin = plugins.load("codecs", name, "--codec")
    options = parse_settings(settings)
    bound = bind(plugin, options, "--set", Path.cwd(), reserved=("point", *(extra or {})))
    if isinstance(point, str):
        point = parse_yaml(point, "--point")
    stated = dict(stated or {})
    for option, value in stated.items():
        given = point if option == "point" else bound.get(option)
        if given is not None and not _agree(given, value):
            argument = "--point" if option == "point" else f"--set {option}"
            raise UserError(f"{argument} is {given!r}, but the stream was made with {value!r}: leave the argument out")
    bound |= {option: value for option, value in stated.items() if option != "point"}
    point = stated.get("point", point)
    if point is None:
        point = first_point(plugin, name)
    try:
        with plugins.explain_missing_package(name, plugin):
            return plugin(point=point, **(extra or {}), **bound)
    except (Exception, SystemExit) as error:  # A codec of another package may raise anything.
        if isinstance(error, UserError) or type(error).__module__.startswith("icmbench."):
            raise
        if isinstance(error, TypeError) and "decode_only" in (extra or {}) and "decode_only" in str(error):
            raise  # `pack verify` asks in this way whether a codec has that argument.
        raise UserError(f"--codec: {name!r} cannot be made: {reason(error)}") from error


def first_point(plugin: Any, name: str) -> Any:
    """The first of a codec's default rate points. Raises UserError if its class has none."""
    points = getattr(plugin, "default_points", None)
    if not points:
        raise UserError(f"--point: codec {name!r} has no default rate points; name one")
    return points[0]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Codec options from the values of `--set`. Raises UserError if one is malformed or given twice."""
    options: dict[str, Any] = {}
    for setting in settings:
        name, value = split_setting(setting)
        if name in options:
            raise UserError(f"--set {setting}: the option {name!r} is set twice; keep one of the two")
        options[name] = value
    return options


def _agree(given: Any, stated: Any) -> bool:
    """Whether an option of the user is what a stream states. A stream keeps a real number to about 9 bits."""
    if isinstance(given, float) and isinstance(stated, int | float) and not isinstance(stated, bool):
        return math.isclose(given, stated, rel_tol=2**-9)
    return given is stated or (type(given) is not bool and given == stated)


def encode(source: Path, codec_factory: Callable[[], Any], target: Path) -> tuple[int, float]:
    """Write the stream of an image.

    Args:
        source: the image file.
        codec_factory: constructs the codec; called once the image has been read.
        target: the file to write.

    Returns:
        The stream's length in bytes and its rate in bits per pixel.

    Raises:
        DatasetError: the image cannot be read.
        CodecError: the image cannot be coded.
        UserError: the stream would replace the image, or cannot be written, or the codec estimates its rate and writes none.
    """
    from icmbench.codecs.base import compress_all, estimates_rate
    from icmbench.tasks.datasets.images import read_image

    refuse_same_file(source, target, "the stream")
    image = read_image(source)
    codec = codec_factory()
    if estimates_rate(codec):
        raise UserError(f"--codec: {codec.name!r} estimates its rate and writes no streams: score it with `icmbench run`")
    data = compress_all(codec, [image], [source.name])[0]
    with writing(target):
        target.write_bytes(data)
    return len(data), 8 * len(data) / (image.shape[0] * image.shape[1])


def decode(source: Path, name: str | None, settings: Sequence[str], point: str | None, target: Path) -> None:
    """Write the reconstruction of a stream as a lossless picture.

    The codec is made with what the stream states: its name, if the stream is in icmbench's container, and what the codec's
    `stream_options` returns.

    Args:
        source: the file with the stream.
        name: entry point of the codec; None if the stream names it.
        settings: values of `--set`, as `make_codec` takes them.
        point: the rate point, as `make_codec` takes it.
        target: the picture to write; its suffix is one of `LOSSLESS`.

    Raises:
        UserError: the stream is damaged, does not name its codec, or states other options than those given; the codec cannot be
            made; or the picture cannot be written.
    """
    from PIL import Image

    from icmbench.codecs.base import BitstreamError, CodecError, decompress_all, estimates_rate
    from icmbench.codecs.bitstream import codec_name

    if target.suffix.lower() not in LOSSLESS:
        raise UserError(f"{target}: write a lossless picture, one of {', '.join(LOSSLESS)}")
    refuse_same_file(source, target, "the picture")
    if not exists(source):
        raise UserError(f"{source}: no such file")
    data = read_bytes(source, "stream")
    if name is None:
        try:
            name = codec_name(data)
        except BitstreamError as error:
            raise UserError(f"{source}: does not name its codec ({error}); say --codec NAME") from None
    facts = ""  # What the stream states, for messages; empty for codecs whose streams state nothing.
    try:
        stream_options = getattr(plugins.load("codecs", name, "codec"), "stream_options", None)
        stated = stream_options(data) if stream_options else {}
        if stream_options:
            facts = f" (the stream states {', '.join(f'{option} {value!r}' for option, value in stated.items())})"
        codec = make_codec(name, settings, point, stated=stated)
        if estimates_rate(codec):
            raise UserError(f"codec {name!r} estimates its rate and has no streams to decode")
        image = decompress_all(codec, [data])[0]
    except (BitstreamError, CodecError, UserError) as error:
        raise UserError(f"{source}: {error}{facts}") from None
    with writing(target):
        try:
            Image.fromarray(image).save(target)
        except ValueError as error:
            raise UserError(f"{target}: cannot write the picture ({error})") from None


def convert(source: Path, target: Path, trust: bool) -> int:
    """Write the tensors of a checkpoint, and nothing else, to a new file.

    Args:
        source: the checkpoint.
        target: the file to write; its suffix is .safetensors or .pth.
        trust: whether code in the checkpoint's pickle may run. No other part of this package allows that.

    Returns:
        The number of tensors.

    Raises:
        CodecError: the checkpoint cannot be read without running code, or not at all.
        UserError: the file exists already or cannot be written.
    """
    with plugins.explain_missing_package("icmbench convert"):
        import torch
        from safetensors.torch import save_file

        from icmbench.codecs.diffusion.backbone.weights import read_state

    if target.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{target}: write .safetensors, or .pth for what takes no other")
    if target.exists():
        raise UserError(f"{target}: is there already; name another file")
    # Copies, because safetensors refuses tensors that share memory.
    state = {key: value.detach().clone().contiguous() for key, value in read_state(source, trust).items()}
    temporary = target.with_name(f"{target.name}.tmp")
    with writing(target):
        if target.suffix == ".pth":
            torch.save(state, temporary)
        else:
            save_file(state, temporary)
        temporary.replace(target)
    return len(state)
