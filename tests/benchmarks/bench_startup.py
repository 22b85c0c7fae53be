"""Start-up time of the command line."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_start_up(in_turns, arguments):
    """Compare with Python that imports only numpy, which every codec and task needs."""

    def run_python(*command):
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    runs = {
        "python -c 'import numpy'": lambda: run_python("-c", "import numpy"),
        f"icmbench {arguments[0]}": lambda: run_python("-m", "icmbench.harness.cli", *arguments),
    }
    in_turns("start-up (goal 1 s)", runs, repeats=5)
