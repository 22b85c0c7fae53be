"""`icmbench guest check` and `icmbench guest new`: adapter files for codecs that run in interpreters of their own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from icmbench.harness import guests
from icmbench.harness.commands.coding import first_point, parse_settings
from icmbench.harness.commands.guest_check import AdapterCheck
from icmbench.harness.config.environments import EnvironmentSection
from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.experiment import Experiment, load_experiment
from icmbench.harness.config.settings import parse_yaml
from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.plugin import adapter_plugin, environment_state, own_environment
from icmbench.harness.guests.process import GUESTS
from icmbench.harness.guests.sections import resolve_environment

SKELETON = Path(guests.__file__).with_name("adapter_skeleton.txt")


def check_adapter(
    file: Path,
    environment: str | None,
    experiment: Path | None,
    folders: Sequence[str],
    settings: Sequence[str],
    point: str | None,
    pictures: Sequence[Path],
) -> bool:
    """Try an adapter on odd sizes and print what was found.

    Args:
        file: the adapter file, or the name of one that comes with icmbench.
        environment: name of an environment of an experiment file, or path of an interpreter; None for this interpreter.
        experiment: the experiment file that has the environment; by default the one in the current folder.
        folders: put before the module search path, if `environment` is no name of an experiment file.
        settings: options of the adapter, `KEY=VALUE` each with a YAML value.
        point: the rate point, as YAML; by default the first of the adapter's default points.
        pictures: photographs to try beside the pictures that are generated.

    Returns:
        Whether everything was as it must be.

    Raises:
        UserError: the adapter or its environment cannot be loaded, or a picture cannot be read.
    """
    where = _find_environment(environment, experiment, folders)
    GUESTS.print_tracebacks = True
    versions = environment_state(where)
    print(f"{where.python}: Python {versions['python']}, numpy {versions['numpy']}, torch {versions['torch'] or 'not installed'}")
    options = {"file": str(file), **parse_settings(settings)}
    plugin, own = adapter_plugin("codecs", options, "--set", where, Path.cwd())
    value = first_point(plugin, file.name) if point is None else parse_yaml(point, "--point")
    return AdapterCheck(lambda: plugin(point=value, **own)).run(pictures)


def write_skeleton(name: str) -> Path:
    """Write a commented adapter to begin with, NAME.py in the current folder.

    Raises:
        UserError: the file exists, or the name is no name of a module.
    """
    stem = name.removesuffix(".py")
    if not stem.isidentifier():
        raise UserError(f"{name!r}: letters, digits and underscores, so that it can name a file and a class")
    path = Path(f"{stem}.py")
    if path.exists():
        raise UserError(f"{path}: exists already; choose another name")
    class_name = "".join(part.capitalize() for part in stem.split("_")) or "Adapter"
    path.write_text(SKELETON.read_text(encoding="utf-8").replace("NAME", stem).replace("CLASS", class_name), encoding="utf-8")
    return path


def describe_environments(experiment: Experiment) -> list[str]:
    """One line for each environment of an experiment: that it starts, and what it has, or why not."""
    lines = []
    for name in experiment.environments:
        try:
            environment = resolve_environment(experiment, name)
            state = environment_state(environment)
        except UserError as error:
            lines.append(f"  --  {name}: {error}")
            continue
        packages = ", ".join(f"{package} {state[package] or 'not installed'}" for package in ("numpy", "torch"))
        count = len(state["packages"])
        line = f"  ok  {name}: Python {state['python']} ({environment.python}), {packages}, {count} packages"
        lines.append("; ".join([line, *map(_describe_folder, state["path"])]))
    GUESTS.end()
    return lines


def _describe_folder(facts: dict[str, object]) -> str:
    if "commit" not in facts:
        return f"files {str(facts['files'])[:12]}"
    changed = facts.get("changed")
    return f"commit {str(facts['commit'])[:12]}" + (f" with {len(changed)} changed files" if isinstance(changed, dict) else "")


def _find_environment(name: str | None, experiment: Path | None, folders: Sequence[str]) -> Environment:
    """The environment that the command line names."""
    if name is None or (experiment is None and ("/" in name or shutil.which(name))):
        section = EnvironmentSection(python=name or own_environment().python, path=list(folders))
        return Environment.of("--environment", section, Path.cwd())
    if folders:
        raise UserError(f"--path: the environment {name!r} of the experiment file names its own folders by `path`")
    if experiment is not None:
        loaded = load_experiment(experiment)
        if name not in loaded.environments:
            raise UserError(f"--environment: {unknown_message('environment', name, loaded.environments)}")
        return resolve_environment(loaded, name)
    loaded_files = filter(None, map(_try_to_load, sorted(Path.cwd().glob("*.yaml"))))
    candidates = [loaded for loaded in loaded_files if name in loaded.environments]
    if not candidates:
        raise UserError(
            f"--environment: no experiment file in this folder has an environment {name!r}; name the file by --experiment, or give "
            "the path of a Python interpreter"
        )
    if len({candidate.environments[name].model_dump_json() for candidate in candidates}) > 1:
        raise UserError(f"--environment: several experiment files in this folder describe {name!r}; name one by --experiment")
    return resolve_environment(candidates[0], name)


def _try_to_load(path: Path) -> Experiment | None:
    try:
        return load_experiment(path)
    except UserError as error:
        print(f"{path.name} is left out: {error}", file=sys.stderr)
        return None
