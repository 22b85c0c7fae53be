"""Shared fixtures."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Otherwise each test of a missing hub file waits through the hub's retries.


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real labelled photographs and models on development machines; a test is skipped where there is none."""
    root = Path(os.environ.get("ICMBENCH_TEST_DATA", Path(__file__).parent.parent.parent / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no test data at {root}: set ICMBENCH_TEST_DATA")
    return root
