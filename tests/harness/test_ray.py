"""A Ray cluster of two nodes on this machine: what runs where, what is lost, and that the numbers are the local run's."""

import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.commands.run import RunOptions, run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.store import Store
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.executors import make_units
from icmbench.harness.work.ray_executor import cores_each, ray_cluster

TASKS = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "loader"}, "reference": "original"}]
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]


@pytest.fixture
def cluster(calls, monkeypatch):
    """A head without cores and two nodes of one core, the second with a resource of its own, named by RAY_ADDRESS."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("ICMBENCH_SLOW", "0.05")  # seconds an image, so that a node can be lost meanwhile
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    made.nodes = [made.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    made.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    ray.shutdown()
    made.shutdown()


def content(folder):
    """All shards by name, without the seconds."""
    tables = {}
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.ParquetFile(file).read()
        tables[str(file.relative_to(folder))] = table.drop_columns(
            [c for c in table.column_names if c.endswith("seconds")]
        ).to_pylist()
    return tables


def check_same(one, other):
    assert content(one) == content(other)
    first, second = (pd.read_csv(folder / "scores.csv").drop(columns=TIMES) for folder in (one, other))
    pd.testing.assert_frame_equal(first, second)


def loads(counted):
    """How often each process loaded the model."""
    return {line.split()[1]: count for line, count in counted.items() if line.startswith("load")}


def test_two_nodes_give_the_local_run_bit_by_bit(tmp_path, experiment, calls, cluster):
    path = experiment(shard_size=1, tasks=TASKS)
    run(load_experiment(path), tmp_path / "one")
    calls()
    result = run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray"))
    counted = calls()
    assert not result.missing and not result.outcome.failures
    assert list(loads(counted).values()) == [1, 1]  # ten blocks, two models
    assert counted["compress shift"] == 30 and counted["model"] == 40
    check_same(tmp_path / "one", tmp_path / "ray")
    assert run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray")).outcome.codec_images == 0
    with pytest.raises(UserError, match="room for 0 workers of one core and 1 GPUs"):
        run(load_experiment(path), tmp_path / "gpu", RunOptions(workers=2, executor="ray", gpus=1))


def test_no_unit_is_started_before_its_worker_is_free(tmp_path, experiment, calls, cluster):
    """Back-pressure: while nobody takes what is done, no more than a unit a worker is at work or waits to be taken."""
    bench = Bench(load_experiment(experiment(shard_size=1, tasks=TASKS)), Store(tmp_path / "ray"))
    bench.prepare("mean-colour")
    told: list[int] = []
    outcomes = ray_cluster(bench, make_units(bench, 2), keep=False, progress=told.append, workers=2, gpus=0)
    next(outcomes)
    time.sleep(4)  # ten units of 0.2 s
    assert 3 <= calls()["compress shift"] <= 6 and len(told) == 1
    assert len(list(outcomes)) == 9 and len(told) == 10


@pytest.mark.parametrize("loss", ["worker", "node"])
def test_a_lost_worker_or_node_costs_nothing(tmp_path, experiment, calls, cluster, loss):
    path = experiment(shard_size=1, tasks=TASKS)
    run(load_experiment(path), tmp_path / "one")
    calls()
    struck = []

    def strike():
        log = Path(os.environ["ICMBENCH_CALLS"])
        while not log.exists() or not (pids := loads(dict.fromkeys(log.read_text().split("\n")[:-1]))):
            time.sleep(0.05)
        if loss == "worker":
            os.kill(int(next(iter(pids))), signal.SIGKILL)
        else:
            cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        struck.append(pids)

    thread = threading.Thread(target=strike)
    thread.start()
    result = run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray"))
    thread.join()
    assert struck and not result.missing and not result.outcome.failures
    if loss == "worker":
        assert set(struck[0]) < set(loads(calls())), "nobody took its place"
    check_same(tmp_path / "one", tmp_path / "ray")


@pytest.mark.parametrize(("codec", "words"), [("stuck", "took longer than"), ("crash", "was lost 3 times")])
def test_a_codec_that_hangs_or_crashes_costs_its_cells_only(tmp_path, experiment, cluster, codec, words):
    codecs = [{"name": codec, "points": [4]}, {"name": "shift", "points": [4]}]
    result = run(load_experiment(experiment(codecs=codecs, timeout=2)), tmp_path / "run", RunOptions(workers=2, executor="ray"))
    assert {failure.cell for failure in result.outcome.failures} == {f"photos / {codec} bits=4 / block 0"}
    assert words in result.outcome.failures[0].reason
    assert "shift" in set(result.scores.codec)


def test_workers_share_the_cores_of_each_node():
    small, large, gpus = {"CPU": 2.0}, {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}
    assert cores_each([large], 2, 0) == 4
    assert cores_each([small, large], 1, 0) == 8
    assert cores_each([small, large], 2, 0) == 4  # 5 each would leave the small node's worker waiting for ever
    assert cores_each([small, small], 3, 0) == 1
    assert cores_each([gpus, {"CPU": 16.0}], 4, 0.5) == 4  # only the first has GPUs
    with pytest.raises(UserError, match="room for 2 workers of one core and 1 GPUs"):
        cores_each([gpus, small], 3, 1)
