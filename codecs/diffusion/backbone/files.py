"""Which files a codec of the family needs, where they are looked for, and on what they are run. Imports nothing heavy.

    weights folder           <codec>-lambda<point>.safetensors or the authors' checkpoints; backbone.safetensors if there;
                             <codec>-shared.safetensors, if there: what the points have in common and their own files leave out
    pretrained/<profile>/    the same, as it comes with this package
    hub                      what the authors published

in this order, each only where the one before was not named or has nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icmbench.codecs.base import CodecError, file_sha256

PRETRAINED = Path(__file__).parents[1] / "pretrained"
BACKBONE = "backbone.safetensors"
# Stable Diffusion 2.1-base as one file, and a hub repository that has it.
SD_CHECKPOINT = "v2-1_512-ema-pruned.ckpt"
SD_REPOSITORY = "Manojb/stable-diffusion-2-1-base"
SD_SHA256 = "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36"
SD_FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}  # part: folder of the diffusers layout


@dataclass(frozen=True)
class Published:
    """Authors' checkpoints: the hub repository, and the path in it of a point's, with {point} in its place."""

    repository: str
    path: str


def run_on(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and type to run on: as asked; else CUDA in bfloat16 where there is one, the CPU in float32. CodecError."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise CodecError(f"there is no device {device!r}: name one of PyTorch, such as cpu, cuda or cuda:1") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise CodecError("this PyTorch sees no CUDA device: set device: cpu")
    return device, dtype or ("bfloat16" if kind == "cuda" else "float32")


@dataclass(frozen=True)
class Files:
    """The files of one codec. weights: a folder, one file for whatever point, "random", or None for the default places.

    backbone: a checkpoint of Stable Diffusion, a folder in diffusers layout, a hub repository in that layout, or None likewise.
    """

    codec: str
    profile: str
    weights: Path | Literal["random"] | None
    backbone: str | None
    published: Published | None = None

    def point(self, point: float) -> Path | None:
        """The weight file of a rate point; None for random weights. CodecError where there is none or the hub cannot be reached."""
        if self.weights == "random":
            return None
        if isinstance(self.weights, Path) and not self.weights.is_dir():
            return self.weights
        names = [f"{self.codec}-lambda{point:g}.safetensors"]
        if self.published and self.profile == "sd21":
            path = self.published.path.format(point=f"{point:g}")
            names += [path, path.partition("/")[2]]  # with and without the repository's top folder
        folder = self.weights or PRETRAINED / self.profile
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
        if self.weights is None and self.profile == "tiny":
            return None
        if self.weights is None and self.published:
            return _hub_file(self.published.repository, names[1], "weights")
        raise CodecError(f"{self.codec} finds no weights of point {point:g} in {folder}: put there {' or '.join(names)}")

    def base(self) -> Path | None:
        """The backbone's file or folder; None for random weights. CodecError as for `point`."""
        if self.backbone is not None:
            here = Path(self.backbone).expanduser()
            if not here.exists() and here.suffix in (".ckpt", ".safetensors"):
                raise CodecError(f"backbone: no such file: {here.absolute()}; put it there, or set `backbone` to where it is")
            return here if here.exists() else _hub_folder(self.backbone, [*SD_FOLDERS.values(), "scheduler"], "backbone")
        if self.weights == "random":
            return None
        beside = self.weights if self.weights is None or self.weights.is_dir() else self.weights.parent
        for folder in (beside, PRETRAINED / self.profile):
            if folder is not None and (folder / BACKBONE).is_file():
                return folder / BACKBONE
        if self.profile == "sd21":
            return _checked(_hub_file(SD_REPOSITORY, SD_CHECKPOINT, "backbone"), SD_SHA256)
        if self.weights is None:
            return None
        raise CodecError(f"{self.codec} finds no backbone for profile {self.profile}: put {BACKBONE} beside its weights")

    def needed(self, point: float) -> list[Path]:
        """All weight files of a point, the backbone's included, for fingerprints; none for random weights."""
        sources = (self.point(point), self.shared(point), self.base())
        return [path for source in sources if source is not None for path in _weight_files(source)]

    def shared(self, point: float) -> Path | None:
        """The file of what a point has in common with the others, if it has one."""
        file = self.point(point)
        beside = None if file is None else file.with_name(f"{self.codec}-shared.safetensors")
        return beside if beside is not None and beside.is_file() else None


def _weight_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    kinds = (".safetensors", ".bin", ".json")
    found = [path for folder in SD_FOLDERS.values() for path in sorted((source / folder).glob("*")) if path.suffix in kinds]
    if not found:
        raise CodecError(
            f"{source} holds no {', '.join(SD_FOLDERS.values())} in diffusers layout: name such a folder or a checkpoint"
        )
    return found


def _checked(path: Path, sha256: str) -> Path:
    if file_sha256(path) != sha256:
        raise CodecError(f"{path} is not the file that was published (SHA-256 {sha256}): delete it and fetch it again")
    return path


def _hub_file(repository: str, name: str, option: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # the client raises a dozen types, from its HTTP library's to its own
        raise _unreachable(repository, name, option, error) from error


def _hub_folder(repository: str, folders: list[str], option: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[f"{folder}/*" for folder in folders]))
    except Exception as error:  # likewise
        raise _unreachable(repository, ", ".join(folders), option, error) from error


def _unreachable(repository: str, what: str, option: str, error: Exception) -> CodecError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return CodecError(
        f"{what} of the hub repository {repository!r} cannot be had ({reason}): fetch it on a machine with a network, "
        f"put it in a folder here under the same name, and set `{option}` to {'that folder' if option == 'weights' else 'its path'}"
    )
