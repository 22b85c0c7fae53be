"""Where the packages of icmbench lie, so that a guest can import one built-in module without installing the rest."""

from __future__ import annotations

from pathlib import Path

import icmbench.codecs.base
import icmbench.tasks.fingerprints


def package_folders() -> dict[str, str]:
    """Folders by dotted name; the package `icmbench` itself has none. Nothing in them is imported until a module is asked for."""
    folders = {"codecs": icmbench.codecs.base.__file__, "tasks": icmbench.tasks.fingerprints.__file__}
    return {"icmbench": ""} | {f"icmbench.{name}": str(Path(str(file)).parent) for name, file in folders.items()}
