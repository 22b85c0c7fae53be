"""`icmbench doctor`: facts of this machine, and which plug-ins can be used on it."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

from icmbench.harness.commands.listing import plugin_entries
from icmbench.harness.config.plugins import KINDS


def print_diagnosis(folder: Path) -> None:
    """Print facts of this machine and, for each plug-in, whether it can be used or why not.

    Args:
        folder: a folder on the disk whose free space is printed.
    """
    for name, fact in machine(folder).items():
        print(f"{name:<12} {fact}")
    for kind in KINDS:
        print(f"{kind}:")
        for entry in plugin_entries(kind, load_all=True):
            print(f"  {'ok' if not entry.trouble else '--'}  {entry.name}{': ' + entry.trouble if entry.trouble else ''}")


def print_environments(path: Path) -> bool:
    """Start each environment of an experiment and print what it has.

    Args:
        path: the experiment file.

    Returns:
        Whether all of them can be used.

    Raises:
        UserError: the file is wrong.
    """
    from icmbench.harness.commands.guest import describe_environments
    from icmbench.harness.config.experiment import load_experiment

    lines = describe_environments(load_experiment(path))
    print("environments:" if lines else "environments: none; all codecs and models run in this interpreter")
    print(*lines, sep="\n")
    return not any(line.startswith("  --") for line in lines)


def machine(folder: Path) -> dict[str, str]:
    """Facts of this machine that decide what can run, by name, as text.

    Args:
        folder: a folder on the disk whose free space is reported.
    """
    from icmbench.harness.work.hardware import hardware

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
