"""The section `environments` of an experiment file: Python interpreters with libraries of their own."""

from __future__ import annotations

from pydantic import Field, field_validator

from icmbench.harness.config.sections import ConfigSection


class EnvironmentSection(ConfigSection):
    """An interpreter in which codecs and models run that name it as their `environment`.

    Attributes:
        python: the interpreter: a path, which starts at the experiment file's folder, or a name that is found on PATH.
        path: folders that are put before its module search path, such as checkouts of authors' repositories. The first one is its
            working folder.
        env: environment variables that it gets beside those of icmbench. CUDA_VISIBLE_DEVICES counts within the devices of the
            worker: "0" is the first one that the worker has.
    """

    python: str
    path: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_to_text(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: str(item) if type(item) in (int, float) else item for key, item in value.items()}
