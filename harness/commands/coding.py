"""What the command line does with single files: encode, decode, and make of a checkpoint one of tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.options import bind
from icmbench.harness.store.store import writing

LOSSLESS = (".png", ".ppm", ".bmp", ".tif", ".tiff")


def built(name: str, options: Sequence[str], point: Any = None, extra: Mapping[str, Any] | None = None) -> Any:
    """A codec by name. options: KEY=VALUE of `--set`. point: a string is YAML; None is the codec's first default."""
    settings = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write KEY=VALUE")
        settings[key] = _yaml(value, f"--set {text}")
    plugin = plugins.load("codecs", name, "--codec")
    if point is None:
        points = getattr(plugin, "default_points", None)
        if not points:
            raise UserError(f"--point: codec {name!r} has no default rate points; name one")
        point = points[0]
    elif isinstance(point, str):
        point = _yaml(point, "--point")
    bound = bind(plugin, settings, "--set", Path.cwd(), given=("point", *(extra or {})))
    with plugins.explained(name, plugin):
        return plugin(point=point, **(extra or {}), **bound)


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{where}: not a YAML value") from None


def encode(source: Path, codec: Callable[[], Any], target: Path) -> tuple[int, float]:
    """Bytes of an image's stream, which is written, and bits a pixel."""
    from icmbench.codecs.base import compress_all
    from icmbench.tasks.datasets.images import read_image

    image = read_image(source)
    data = compress_all(codec(), [image], [source.name])[0]
    with writing(target):
        target.write_bytes(data)
    return len(data), 8 * len(data) / (image.shape[0] * image.shape[1])


def decode(source: Path, name: str | None, codec: Callable[[str], Any], target: Path) -> None:
    """Write the picture of a stream, which may name its codec itself."""
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
    image = decompress_all(codec(name), [data])[0]
    try:
        Image.fromarray(image).save(target)
    except (OSError, ValueError) as error:
        raise UserError(f"{target}: cannot write the picture ({error})") from None


def convert(source: Path, target: Path, trust: bool) -> int:
    """How many tensors of a checkpoint were written. trust: its pickle may run code, which no other part of this package allows."""
    with plugins.explained("icmbench convert"):
        import torch
        from safetensors.torch import save_file

        from icmbench.codecs.diffusion.backbone.weights import read_state

    if target.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{target}: write .safetensors, or .pth for what takes no other")
    if target.exists():
        raise UserError(f"{target}: is there already; name another file")
    # Copies, as safetensors takes no tensors that share memory.
    state = {key: value.detach().clone().contiguous() for key, value in read_state(source, trust).items()}
    part = target.with_name(f"{target.name}.tmp")
    with writing(target):
        if target.suffix == ".pth":
            torch.save(state, part)
        else:
            save_file(state, part)
        part.replace(target)
    return len(state)
