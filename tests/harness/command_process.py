"""`icmbench` in a process that was forked from one with all imports; test_training.py runs this by `runpy`, with these names set:

arguments: the command line
output: the file or terminal that gets both standard streams
"""

import os
import sys

from icmbench.harness.cli import main

number = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # noqa: F821
os.dup2(number, 1)
os.dup2(number, 2)
sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115 - stay open
sys.exit(main([str(argument) for argument in arguments]))  # noqa: F821
