"""A Ray cluster of two nodes on this machine: what runs where, what is lost, and that scores equal those of a local run."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.processes.executors import make_units
from icmbench.harness.processes.pool import Staff
from icmbench.harness.processes.ray_executor import cores_each, ray_cluster
from icmbench.harness.store.folder import Folder
from icmbench.harness.work.bench import Bench

TASKS = [{"name": "mean-colour", "dataset": "photos", "model": {"name": "loader"}, "reference": "original"}]
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]


@pytest.fixture
def cluster(calls, monkeypatch):
    """A head without cores and two nodes of one core each, whose address is in RAY_ADDRESS."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("ICMBENCH_SLOW", "0.05")  # Seconds per image, so that there is time to lose a node.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    cluster.nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def rows_of_store(folder):
    """All rows of a run's store by fingerprint and key, without times."""
    rows = {}
    for file in sorted((folder / "store").rglob("*.parquet")):
        if not file.name.startswith("index"):
            table = pq.ParquetFile(file).read()
            names = [c for c in table.column_names if not c.endswith("seconds") and c not in ("written", "machine")]
            rows |= {(file.parent.name, row["key"]): row for row in table.select(names).to_pylist()}
    return rows


def assert_same_run(first, second):
    assert rows_of_store(first) == rows_of_store(second)
    scores = [pd.read_csv(folder / "scores.csv").drop(columns=TIMES) for folder in (first, second)]
    pd.testing.assert_frame_equal(*scores)


def model_loads(counts):
    """How often each process loaded the model, by process id."""
    return {line.split()[1]: count for line, count in counts.items() if line.startswith("load")}


def test_two_nodes_give_the_local_run_bit_by_bit(tmp_path, experiment, calls, cluster):
    path = experiment(shard_size=1, tasks=TASKS)
    run(load_experiment(path), tmp_path / "one")
    calls()
    result = run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray"))
    counts = calls()
    assert not result.missing and not result.outcome.failures
    assert list(model_loads(counts).values()) == [1, 1]  # Each of the two workers loads it once for all its blocks.
    assert counts["compress shift"] == 30 and counts["model"] == 40
    assert_same_run(tmp_path / "one", tmp_path / "ray")
    assert run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray")).outcome.codec_images == 0
    with pytest.raises(UserError, match="room for 0 workers of one core and 1 GPUs"):
        run(load_experiment(path), tmp_path / "gpu", RunOptions(workers=2, executor="ray", gpus=1))


def test_no_unit_is_started_before_its_worker_is_free(tmp_path, experiment, calls, cluster):
    """Back-pressure: while nobody takes outcomes, each worker has no more than one unit that is being computed or is finished."""
    bench = Bench(load_experiment(experiment(shard_size=1, tasks=TASKS)), Folder(tmp_path / "ray"))
    bench.load_context("mean-colour")
    outcomes = ray_cluster(bench, make_units(bench, 2), keep=False, command="test", staff=Staff(2), gpus=0)
    next(outcomes)
    time.sleep(4)  # Enough for all ten units, which take 0.2 s each.
    assert 3 <= calls()["compress shift"] <= 6
    assert len(list(outcomes)) == 9


@pytest.mark.parametrize("loss", ["worker", "node"])
def test_a_lost_worker_or_node_costs_nothing(tmp_path, experiment, calls, cluster, loss):
    path = experiment(shard_size=1, tasks=TASKS)
    run(load_experiment(path), tmp_path / "one")
    calls()
    pids_at_loss = []

    def lose_worker_or_node():
        log = Path(os.environ["ICMBENCH_CALLS"])
        while not log.exists() or not (pids := model_loads(dict.fromkeys(log.read_text().split("\n")[:-1]))):
            time.sleep(0.05)
        if loss == "worker":
            os.kill(int(next(iter(pids))), signal.SIGKILL)
        else:
            cluster.remove_node(cluster.nodes[1], allow_graceful=False)
        pids_at_loss.append(pids)

    thread = threading.Thread(target=lose_worker_or_node)
    thread.start()
    result = run(load_experiment(path), tmp_path / "ray", RunOptions(workers=2, executor="ray"))
    thread.join()
    assert pids_at_loss and not result.missing and not result.outcome.failures
    if loss == "worker":
        assert set(pids_at_loss[0]) < set(model_loads(calls())), "the lost worker was not replaced"
    assert_same_run(tmp_path / "one", tmp_path / "ray")


@pytest.fixture
def three_cores(cluster):
    """The cluster with a third node: two coders and a model process need a core each."""
    cluster.nodes.append(cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20))
    cluster.wait_for_nodes()
    return cluster


@pytest.mark.parametrize("loss", ["nobody", "coder", "model", "node"])
def test_coders_and_models_are_two_kinds_of_actors(tmp_path, experiment, calls, three_cores, loss):
    """One model actor serves two coders, whoever is lost meanwhile."""
    path = experiment(
        shard_size=1, tasks=[*TASKS, {"name": "distance", "dataset": "photos"}], codecs=[{"name": "on-gpu"}], anchor=None
    )
    run(load_experiment(path), tmp_path / "one")
    calls()
    folder, lost = tmp_path / "ray", []

    def lose():
        log = Path(os.environ["ICMBENCH_CALLS"])
        while not log.exists() or log.read_text().count("model\n") < 5:
            time.sleep(0.05)
        [model] = model_loads(dict.fromkeys(log.read_text().split("\n")[:-1]))
        processes = {json.loads(file.read_text())["pid"] for file in folder.glob("progress/*/*.json")}
        if loss == "node":
            three_cores.remove_node(three_cores.nodes[1], allow_graceful=False)
        else:
            os.kill(int(model) if loss == "model" else (processes - {int(model), os.getpid()}).pop(), signal.SIGKILL)
        lost.append(loss)

    thread = threading.Thread(target=lose, daemon=True)
    if loss != "nobody":
        thread.start()
    result = run(load_experiment(path), folder, RunOptions(coders=2, models=1, executor="ray"))
    assert loss == "nobody" or lost
    assert not result.missing and not result.outcome.failures
    counts = calls()
    if loss == "nobody":
        assert list(model_loads(counts).values()) == [1]
        coding = {line.split()[2] for line in counts if line.startswith("coded in")}
        assert coding == set(model_loads(counts))  # A codec on a GPU works where the models are.
    assert_same_run(tmp_path / "one", folder)
    with pytest.raises(UserError, match="has 3 cores" if loss == "nobody" else "cores"):
        run(load_experiment(path), tmp_path / "more", RunOptions(coders=9, models=1, executor="ray"))


@pytest.mark.parametrize(("codec", "words"), [("stuck", "took longer than"), ("crash", "was lost 3 times")])
def test_a_codec_that_hangs_or_crashes_costs_its_cells_only(tmp_path, experiment, cluster, codec, words):
    codecs = [{"name": codec, "points": [4]}, {"name": "shift", "points": [4]}]
    result = run(load_experiment(experiment(codecs=codecs, timeout=2)), tmp_path / "run", RunOptions(workers=2, executor="ray"))
    assert {failure.cell for failure in result.outcome.failures} == {f"photos / {codec} bits=4 / block 0"}
    assert words in result.outcome.failures[0].reason
    assert "shift" in set(result.scores.codec)


ADAPTER = """
import zlib
import numpy as np

class Raw:
    def __init__(self, point):
        pass
    def compress(self, image):
        return np.array(image.shape, np.uint16).tobytes() + zlib.compress(image.tobytes())
    def decompress(self, data):
        return np.frombuffer(zlib.decompress(data[6:]), np.uint8).reshape(np.frombuffer(data[:6], np.uint16))
"""


@pytest.mark.parametrize("roles", [{"workers": 2}, {"coders": 1, "models": 1}])
def test_codecs_in_interpreters_of_their_own_run_on_the_nodes(tmp_path, experiment, cluster, roles):
    (tmp_path / "raw.py").write_text(ADAPTER)
    codecs = [{"name": "guest", "environment": "own", "points": [1], "set": {"file": "raw.py"}}]
    path = experiment(codecs=codecs, anchor=None, tasks=TASKS, environments={"own": {"python": sys.executable}}, shard_size=2)
    run(load_experiment(path), tmp_path / "one")
    result = run(load_experiment(path), tmp_path / "ray", RunOptions(executor="ray", **roles))
    assert not result.missing and not result.outcome.failures
    assert_same_run(tmp_path / "one", tmp_path / "ray")


def test_workers_share_the_cores_of_each_node():
    small, large, gpus = {"CPU": 2.0}, {"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}
    assert cores_each([large], 2, 0) == 4
    assert cores_each([small, large], 1, 0) == 8
    assert cores_each([small, large], 2, 0) == 4  # With 5 each, the second worker would wait for ever.
    assert cores_each([small, small], 3, 0) == 1
    assert cores_each([gpus, {"CPU": 16.0}], 4, 0.5) == 4  # Only the first node has GPUs.
    with pytest.raises(UserError, match="room for 2 workers of one core and 1 GPUs"):
        cores_each([gpus, small], 3, 1)
