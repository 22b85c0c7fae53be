"""`icmbench doctor` and `icmbench list`: what is here, and what is usable."""

from __future__ import annotations

import inspect
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from icmbench.harness.config import plugins


@dataclass(frozen=True)
class Entry:
    """One plug-in as `list` and `doctor` show it. `trouble` is empty where it can be used."""

    kind: str
    name: str
    summary: str
    weights: str
    trouble: str


def entries(kind: str) -> list[Entry]:
    """All plug-ins of a kind: what their class says of itself, and whether what it needs is installed."""
    found = []
    for name in plugins.available(kind):
        try:
            plugin = plugins.load(kind, name, kind)
        except Exception as error:  # a plug-in of another package may break in any way; the others are still to be listed
            found.append(Entry(kind, name, "", "", f"cannot be loaded: {error}"))
            continue
        summary = (inspect.getdoc(plugin) or "").partition("\n")[0]
        missing = _missing(getattr(plugin, "extra", None))
        usable = getattr(plugin, "usable", None)  # optional: a classmethod that says why not, e.g. a binary that is not there
        trouble = missing or (usable() if usable else None) or ""
        found.append(Entry(kind, name, summary, getattr(plugin, "weights", ""), trouble))
    return found


def _missing(extra: str | None) -> str:
    """Which distributions of an extra of this project are not installed, and the remedy."""
    if not extra:
        return ""
    wanted = [line for line in requires("icmbench") or [] if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", line)]
    absent = []
    for line in wanted:
        name = re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return f"needs {', '.join(absent)}: python -m pip install 'icmbench[{extra}]'" if absent else ""


def machine(folder: Path) -> dict[str, str]:
    """Facts of this machine that decide what can run."""
    from icmbench.harness.derive.environment import hardware

    facts = hardware()
    try:
        import torch

        torch_line = f"{torch.__version__}, {f'CUDA {torch.version.cuda}' if torch.cuda.is_available() else 'no GPU'}"
        facts["gpus"] = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    except ModuleNotFoundError:
        torch_line = "not installed"
    return {
        "icmbench": version("icmbench"),
        "processor": f"{facts['processor']}, {facts['cores']} cores",
        "memory": f"{facts['memory_gib']} GiB",
        "free disk": f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB at {folder.absolute()}",
        "torch": torch_line,
        "GPUs": ", ".join(facts["gpus"]) or "none",
    }
