"""Which class a section of an experiment file means: a plug-in of this interpreter, or one in a guest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from icmbench.harness.config import plugins
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.plugin import (
    GUEST,
    Kind,
    adapter_plugin,
    built_in_plugin,
    environment_state,
    own_environment,
)


def find_plugin(
    experiment: Experiment, kind: Kind, name: str, options: Mapping[str, Any], key: str, environment: str | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class of a codec or model, and the options that are its own.

    Args:
        experiment: names the environments.
        kind: what the class is.
        name: name of its entry point.
        options: those of the section.
        key: the key that holds the options, for messages.
        environment: the interpreter that the section names; None for this one.

    Raises:
        UserError: there is no such class, or its interpreter cannot be started.
    """
    base = experiment.folder
    if environment is None and name != GUEST:
        return plugins.load(kind, name, key), dict(options)
    guest = own_environment() if environment is None else resolve_environment(experiment, environment)
    if name == GUEST:
        return adapter_plugin(kind, options, key, guest, base)
    return built_in_plugin(kind, name, key, guest, base), dict(options)


def resolve_environment(experiment: Experiment, name: str) -> Environment:
    """An environment of an experiment. Raises UserError if its interpreter or a folder is not there."""
    return Environment.of(f"environments.{name}", experiment.environments[name], experiment.folder)


def recorded_environment(experiment: Experiment, name: str) -> dict[str, Any]:
    """What environment.json says of an environment: its interpreter, all packages, and the state of its folders.

    Raises:
        UserError: it cannot be started.
    """
    environment = resolve_environment(experiment, name)
    return {"interpreter": environment.python, **environment_state(environment)}
