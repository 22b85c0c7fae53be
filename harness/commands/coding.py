"""`icmbench encode`, `decode` and `convert`: commands that turn one file into another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind
from icmbench.harness.store.store import writing

LOSSLESS = (".png", ".ppm", ".bmp", ".tif", ".tiff")


def make_codec(name: str, settings: Sequence[str], point: Any = None, extra: Mapping[str, Any] | None = None) -> Any:
    """Construct a codec from what the command line says.

    Args:
        name: entry point of the codec.
        settings: values of `--set`, each `KEY=VALUE` with a YAML value.
        point: the rate point. Text is read as YAML; None stands for the first of the codec's default points.
        extra: further constructor arguments.

    Returns:
        The codec.

    Raises:
        UserError: the codec, a setting or the point is unknown or wrong.
    """
    options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write KEY=VALUE")
        options[key] = _parse_yaml(value, f"--set {setting}")
    plugin = plugins.load("codecs", name, "--codec")
    if point is None:
        points = getattr(plugin, "default_points", None)
        if not points:
            raise UserError(f"--point: codec {name!r} has no default rate points; name one")
        point = points[0]
    elif isinstance(point, str):
        point = _parse_yaml(point, "--point")
    bound = bind(plugin, options, "--set", Path.cwd(), reserved=("point", *(extra or {})))
    with plugins.explain_missing_package(name, plugin):
        return plugin(point=point, **(extra or {}), **bound)


def _parse_yaml(text: str, argument: str) -> Any:
    """The YAML value of a command-line argument, which the error message names."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{argument}: not a YAML value") from None


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
        UserError: the stream cannot be written.
    """
    from icmbench.codecs.base import compress_all
    from icmbench.tasks.datasets.images import read_image

    image = read_image(source)
    data = compress_all(codec_factory(), [image], [source.name])[0]
    with writing(target):
        target.write_bytes(data)
    return len(data), 8 * len(data) / (image.shape[0] * image.shape[1])


def decode(source: Path, name: str | None, codec_factory: Callable[[str], Any], target: Path) -> None:
    """Write the reconstruction of a stream as a lossless picture.

    Args:
        source: the file with the stream.
        name: entry point of the codec; None if the stream is in icmbench's container, which names its codec.
        codec_factory: constructs the codec of a given name.
        target: the picture to write; its suffix is one of `LOSSLESS`.

    Raises:
        BitstreamError: the stream is damaged.
        UserError: the stream does not name its codec, or the picture cannot be written.
    """
    from PIL import Image

    from icmbench.codecs.base import BitstreamError, decompress_all
    from icmbench.codecs.bitstream import Container

    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if target.suffix.lower() not in LOSSLESS:
        raise UserError(f"{target}: write a lossless picture, one of {', '.join(LOSSLESS)}")
    data = source.read_bytes()
    if name is None:
        try:
            name = Container.from_bytes(data).codec
        except BitstreamError as error:
            raise UserError(f"{source}: does not name its codec ({error}); say --codec NAME") from None
    image = decompress_all(codec_factory(name), [data])[0]
    try:
        Image.fromarray(image).save(target)
    except (OSError, ValueError) as error:
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
