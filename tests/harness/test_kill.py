"""A run that is killed at random moments and started again ends like an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import psutil
import pyarrow.parquet as pq

TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]
KILLS = int(os.environ.get("ICMBENCH_KILLS", "5"))  # `tox run -e soak` sets 50.


def is_worker(process):
    """Whether a process is a worker that lives; of one that has just ended, the command line cannot be read."""
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_kill_9_at_random_moments(tmp_path, experiment, icmbench):
    path = experiment(shard_size=2, codecs=[{"name": "shift"}, {"name": "jpeg", "points": [10, 50]}])
    undisturbed = icmbench("run", path, "--out", tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = pd.read_csv(tmp_path / "whole" / "scores.csv")
    total = len(list((tmp_path / "whole").rglob("*.parquet")))
    chance = random.Random(0)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run")]
    killed = 0
    for kill in range(KILLS):
        process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        files = int(total * (kill + chance.random()) / (KILLS + 1))  # The run is killed when it has written so many files.
        while process.poll() is None and len(list((tmp_path / "run").rglob("*.parquet"))) < files:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 0.8 * KILLS
    finished = icmbench("run", path, "--out", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "run" / "scores.csv").drop(columns=TIMES), expected.drop(columns=TIMES), check_exact=True
    )
    assert not list((tmp_path / "run").rglob("*.tmp-*")), "half-written files are swept"
    rows = [
        sum(pq.read_metadata(file).num_rows for file in (tmp_path / name / "store").rglob("0*.parquet"))
        for name in ("run", "whole")
    ]
    assert rows[0] == rows[1], "no row is stored twice"


def test_kill_9_of_workers_at_random_moments(tmp_path, experiment, icmbench):
    path = experiment(shard_size=1, timeout=300, codecs=[{"name": "shift"}, {"name": "jpeg", "points": [10, 50]}])
    undisturbed = icmbench("run", path, "--out", tmp_path / "whole")
    assert undisturbed.returncode == 0, undisturbed.stderr
    chance = random.Random(1)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", str(tmp_path / "run"), "--workers", "2"]
    environment = os.environ | {"ICMBENCH_SLOW_CODEC": "0.1"}
    killed = 0
    while killed < KILLS:  # A unit that lost too many workers ends the run with exit code 1; then the command is started again.
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and killed < KILLS:
                time.sleep(chance.random() * 2)
                with suppress(psutil.Error):  # A worker, or the run, may end between two of these looks.
                    workers = [child for child in psutil.Process(process.pid).children() if is_worker(child)]
                    if workers:
                        chance.choice(workers).kill()
                        killed += 1
            _, errors = process.communicate(timeout=100)
            assert process.returncode in (0, 1, 2) and "Traceback" not in errors, errors
    finished = icmbench("run", path, "--out", tmp_path / "run", "--workers", "2")
    assert finished.returncode == 0, finished.stderr
    expected, scores = (pd.read_csv(tmp_path / folder / "scores.csv").drop(columns=TIMES) for folder in ("whole", "run"))
    pd.testing.assert_frame_equal(scores, expected, check_exact=True)
