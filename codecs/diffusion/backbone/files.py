"""The weight files that a codec of the family needs, and where they are searched. Imports nothing heavy.

    weights folder           <codec>-lambda<point>.safetensors, or the authors' checkpoint, for each rate point;
                             optional: <codec>-shared.safetensors, tensors that all rate points share and their files leave out;
                             optional: backbone.safetensors
    pretrained/<profile>/    the same files, as they come with this package
    hub                      what the authors published

The sources are searched in this order. If the user names a weights folder, the files of the rate points must be there, and only the
backbone is searched further.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from icmbench.codecs.base import CodecError, file_sha256

PRETRAINED = Path(__file__).parents[1] / "pretrained"
BACKBONE = "backbone.safetensors"
# Stable Diffusion 2.1-base as one file, a hub repository that holds it, and its SHA-256.
SD_CHECKPOINT = "v2-1_512-ema-pruned.ckpt"
SD_REPOSITORY = "Manojb/stable-diffusion-2-1-base"
SD_SHA256 = "88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36"
# The key of the metadata of a safetensors file that holds what `WeightFiles.trained_with` returns, as JSON.
TRAINED_WITH = "trained_with"
# The folder of each network in the diffusers layout.
SD_FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}


@dataclass(frozen=True)
class PublishedWeights:
    """Checkpoints that the authors of a codec published.

    Args:
        repository: Hub repository, such as "owner/name".
        path: Path of a rate point's checkpoint in the repository, with "{point}" for its lambda.
    """

    repository: str
    path: str


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Choose the torch device and dtype to run on.

    Args:
        device: Name of a torch device; None for CUDA if available, otherwise the CPU.
        dtype: Name of a torch dtype; None for "bfloat16" on CUDA, otherwise "float32".

    Returns:
        The names of the device and the dtype.

    Raises:
        CodecError: there is no such device, or PyTorch sees no CUDA device.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device_type = torch.device(device).type
    except RuntimeError as error:
        raise CodecError(f"there is no device {device!r}: name one of PyTorch, such as cpu, cuda or cuda:1") from error
    if device_type == "cuda" and not torch.cuda.is_available():
        raise CodecError("this PyTorch sees no CUDA device: set device: cpu")
    return device, dtype or ("bfloat16" if device_type == "cuda" else "float32")


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of one codec.

    Args:
        codec: Name of the codec.
        profile: Name of the profile, "sd21" or "tiny".
        weights: A folder; one file, which is then used for every rate point; "random" for random weights; or None for the weights
            that come with this package or, for "sd21", the authors' on the hub.
        backbone: A checkpoint of Stable Diffusion, a folder in diffusers layout, a hub repository in that layout, or None for the
            file beside the weights, the one that comes with this package or, for "sd21", the one on the hub.
        published: The authors' checkpoints, if they published any.
    """

    codec: str
    profile: str
    weights: Path | Literal["random"] | None
    backbone: str | None
    published: PublishedWeights | None = None

    def point_file(self, point: float) -> Path | None:
        """Find the weight file of a rate point, given by its lambda; download it if necessary.

        Returns:
            The file, or None for random weights.

        Raises:
            CodecError: there is no such file, or the hub cannot be reached.
        """
        if self.weights == "random":
            return None
        if isinstance(self.weights, Path) and not self.weights.is_dir():
            return self.weights
        names = [f"{self.codec}-lambda{point:g}.safetensors"]
        if self.published and self.profile == "sd21":
            path = self.published.path.format(point=f"{point:g}")
            names += [path, path.partition("/")[2]]  # A copy may leave out the repository's top folder.
        folder = self.weights or PRETRAINED / self.profile
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
        if self.weights is None and self.profile == "tiny":
            return None
        if self.weights is None and self.published:
            return _hub_file(self.published.repository, names[1], "weights")
        raise CodecError(f"{self.codec} finds no weights of point {point:g} in {folder}: put there {' or '.join(names)}")

    def backbone_source(self) -> Path | None:
        """Find the file or folder of the backbone; download it if necessary.

        Returns:
            A checkpoint or a folder in diffusers layout, or None for random weights.

        Raises:
            CodecError: it does not exist, the hub cannot be reached, or a download is not the file that was published.
        """
        if self.backbone is not None:
            local = Path(self.backbone).expanduser()
            if not local.exists() and local.suffix in (".ckpt", ".safetensors"):
                raise CodecError(f"backbone: no such file: {local.absolute()}; put it there, or set `backbone` to where it is")
            return local if local.exists() else _hub_folder(self.backbone, [*SD_FOLDERS.values(), "scheduler"], "backbone")
        if self.weights == "random":
            return None
        weights_folder = self.weights if self.weights is None or self.weights.is_dir() else self.weights.parent
        for folder in (weights_folder, PRETRAINED / self.profile):
            if folder is not None and (folder / BACKBONE).is_file():
                return folder / BACKBONE
        if self.profile == "sd21":
            return _verified(_hub_file(SD_REPOSITORY, SD_CHECKPOINT, "backbone"), SD_SHA256)
        if self.weights is None:
            return None
        raise CodecError(f"{self.codec} finds no backbone for profile {self.profile}: put {BACKBONE} beside its weights")

    def trained_with(self, point: float) -> dict[str, Any]:
        """The options of training that the weights of a rate point record, by name; a codec that samples otherwise says so.

        Returns:
            JSON values; nothing for random weights, for authors' checkpoints, and for files that record nothing.

        Raises:
            CodecError: as for `point_file`, or the file is damaged.
        """
        file = self.point_file(point)
        return {} if file is None or file.suffix != ".safetensors" else read_training_record(file)

    def required_files(self, point: float) -> list[Path]:
        """List all files that decide the weights of a rate point, those of the backbone included; none for random weights.

        Raises:
            CodecError: as for `point_file` and `backbone_source`.
        """
        sources = (self.point_file(point), self.shared_file(point), self.backbone_source())
        return [path for source in sources if source is not None for path in _weight_files(source)]

    def shared_file(self, point: float) -> Path | None:
        """Find the file of the tensors that a rate point shares with the others; None if there is no such file.

        Raises:
            CodecError: as for `point_file`.
        """
        file = self.point_file(point)
        shared = None if file is None else file.with_name(f"{self.codec}-shared.safetensors")
        return shared if shared is not None and shared.is_file() else None


def training_record(facts: Mapping[str, Any]) -> dict[str, str] | None:
    """The metadata of a safetensors file that records options of training; None for none, which leaves the file as it was."""
    return {TRAINED_WITH: json.dumps(dict(facts), sort_keys=True)} if facts else None


def read_training_record(file: Path) -> dict[str, Any]:
    """The options of training that a safetensors file records, by name; the tensors are not read.

    Raises:
        CodecError: the file cannot be read or is no safetensors file.
    """
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return dict(json.loads(header.get("__metadata__", {}).get(TRAINED_WITH, "{}")))
    except (OSError, OverflowError, MemoryError, ValueError, TypeError, AttributeError) as error:
        raise CodecError(f"{file} is no whole safetensors file ({type(error).__name__}): export or fetch it again") from error


def _weight_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    suffixes = (".safetensors", ".bin", ".json")
    files = [path for folder in SD_FOLDERS.values() for path in sorted((source / folder).glob("*")) if path.suffix in suffixes]
    if not files:
        raise CodecError(
            f"{source} holds no {', '.join(SD_FOLDERS.values())} in diffusers layout: name such a folder or a checkpoint"
        )
    return files


def _verified(path: Path, sha256: str) -> Path:
    if file_sha256(path) != sha256:
        raise CodecError(f"{path} is not the file that was published (SHA-256 {sha256}): delete it and fetch it again")
    return path


def _hub_file(repository: str, name: str, option: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # The client raises many types: its own, its HTTP library's, the operating system's.
        raise _download_error(repository, name, option, error) from error


def _hub_folder(repository: str, folders: list[str], option: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=[f"{folder}/*" for folder in folders]))
    except Exception as error:  # See _hub_file.
        raise _download_error(repository, ", ".join(folders), option, error) from error


def _download_error(repository: str, content: str, option: str, error: Exception) -> CodecError:
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    return CodecError(
        f"{content} of the hub repository {repository!r} cannot be had ({reason}): fetch it on a machine with a network, "
        f"put it in a folder here under the same name, and set `{option}` to {'that folder' if option == 'weights' else 'its path'}"
    )
