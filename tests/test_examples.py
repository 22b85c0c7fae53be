"""The examples in docstrings (`>>>`) run and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(["icmbench", *path.relative_to(ROOT).with_suffix("").parts])
    for folder in ("harness", "codecs", "tasks", "results")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


def test_what_users_call_first_has_examples():
    assert {"icmbench.results.bd", "icmbench.codecs.base", "icmbench.tasks.base", "icmbench.tasks.matching"} <= {*MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_show(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted and not outcome.failed
