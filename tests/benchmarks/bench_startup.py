"""Start-up of the command line."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["list"]])
def test_start_up(in_turns, arguments):
    """Against Python alone with numpy, which every codec and task imports."""

    def started(*command):
        subprocess.run([sys.executable, *command], check=True, capture_output=True)

    runs = {
        "python -c 'import numpy'": lambda: started("-c", "import numpy"),
        f"icmbench {arguments[0]}": lambda: started("-m", "icmbench.harness.cli", *arguments),
    }
    in_turns("start-up (goal 1 s)", runs, repeats=5)
