"""What identifies a model of the Hugging Face hub: the files of its folder, or its commit."""

from __future__ import annotations

from pathlib import Path

from icmbench.codecs.base import CodecError, file_sha256, walk_files

# What describes a model but decides nothing. Hidden files and folders belong to git and to the hub's client.
DOCUMENTATION = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf")


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a model folder and its subfolders, without documentation and hidden ones.

    Linked folders are followed once, so that a link to a folder above does not lead in circles. What is no regular file, such as a
    pipe, is left out, because reading it may never end.

    Returns:
        Hex digits by path relative to the folder, sorted.
    """
    files = walk_files(folder, lambda path: path.name.startswith("."))
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files if path.suffix.lower() not in DOCUMENTATION}
    return dict(sorted(hashes.items()))


def commit_of(repository: str, revision: str | None = None) -> str:
    """The commit that a revision of a hub repository stands for, from the hub's cache on this disk if the hub is out of reach.

    Args:
        repository: hub name such as `org/model`.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        CodecError: neither the hub nor its cache has the repository.
    """
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json"])).name
    except (OSError, ValueError, ImportError) as error:  # The hub's errors are OSErrors, those of names ValueErrors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CodecError(
            f"the captioner {repository!r} cannot be had ({reason}): name a folder with a transformers model and its processor, "
            "such as a copy of Salesforce/blip2-opt-2.7b, or a hub repository where there is a network"
        ) from error
