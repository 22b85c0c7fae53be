"""The run folder on an S3-compatible server, which is started here and reached over HTTP."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")

from icmbench.harness.commands.computing import RunOptions
from icmbench.harness.commands.run import run
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import load_experiment
from icmbench.harness.store.folder import Folder

CLOSED = threading.Event()  # While it is set, the server refuses all writes.
TIMES = ["encode_seconds", "decode_seconds", "task_seconds"]


def one_request_at_a_time(app):
    """Make moto's conditional put atomic, as that of a real S3 service is.

    moto looks for the object and writes it in two steps, between which another writer can come, so that both win.
    """
    lock = threading.Lock()

    def locked(environ, start_response):
        if CLOSED.is_set() and environ["REQUEST_METHOD"] != "GET" and environ["REQUEST_METHOD"] != "HEAD":
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        with lock:
            return app(environ, start_response)

    return locked


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    server._server.app = one_request_at_a_time(server._server.app)
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """The URL of an empty bucket, which this process and every process that it starts can reach."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{time.time_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def test_of_several_writers_at_once_one_wins(bucket):
    stores = [Folder(f"{bucket}/run") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for trial in range(5):
            name = f"streams/{trial}.parquet"
            won = list(pool.map(lambda k: stores[k].write(name, b"%d" % k * 1000, replace=False), range(8)))  # noqa: B023
            assert sum(won) == 1
            assert stores[0].read(name) == b"%d" % won.index(True) * 1000
    assert stores[0].write("streams/0.parquet", b"x")
    assert stores[1].read("streams/0.parquet") == b"x"  # The client must not cache content or listings.
    assert stores[1].exists("streams/4.parquet") and not stores[1].exists("streams/5.parquet")
    assert stores[2].names("streams") == [f"streams/{k}.parquet" for k in range(5)]


def test_a_run_on_s3_equals_one_on_a_disk_and_a_second_one_computes_nothing(tmp_path, experiment, calls, bucket):
    codecs = [{"name": "shift", "points": [6, 4]}, {"name": "shaky", "points": [4]}]
    path = experiment(codecs=codecs, limit=4)
    run(load_experiment(path), tmp_path / "run")
    calls()
    done = run(load_experiment(path), f"{bucket}/run", RunOptions(keep=True), source=path)
    assert not done.missing, done.outcome.failures
    assert calls()["compress shift"] == 8
    store = Folder(f"{bucket}/run")
    for name in ("experiment.yaml", "environment.json", "scores.csv", "bdrate.csv", "report/index.html"):
        assert store.exists(name), name
    assert sum(file.endswith(".png") for file in store.fs.find(f"{store.path}/store/reconstructions")) == 12
    again = run(load_experiment(path), f"{bucket}/run", source=path)
    assert not again.missing and calls() == {}
    with store.fs.open(store.full_path("scores.csv")) as file:
        scores = pd.read_csv(file)
    local = pd.read_csv(tmp_path / "run" / "scores.csv")
    pd.testing.assert_frame_equal(*(frame[frame.codec == "shift"].drop(columns=TIMES) for frame in (scores, local)))


def test_a_store_that_answers_403_to_writes_serves_a_run_that_needs_nothing_new(tmp_path, experiment, calls, bucket, capsys):
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}], limit=4, store=f"{bucket}/store", bootstrap=0)
    first = run(load_experiment(path), tmp_path / "first", RunOptions(images=0))
    calls()
    CLOSED.set()
    try:
        second = run(load_experiment(path), tmp_path / "second", RunOptions(images=0))
        assert second.scores.value.tolist() == first.scores.value.tolist() and calls() == {}
        assert f"{bucket}/store can only be read" in capsys.readouterr().err
        path = experiment(codecs=[{"name": "shift", "points": [2]}], limit=4, store=f"{bucket}/store", anchor=None)
        with pytest.raises(
            UserError, match=f"{bucket}/store can only be read, and lacks a part of photos / shift bits=6 / block 0"
        ):
            run(load_experiment(path), tmp_path / "third")
        assert calls() == {}
    finally:
        CLOSED.clear()


def test_a_killed_run_is_resumed(experiment, calls, bucket):
    tasks = [{"name": "distance", "dataset": "photos"}]
    path = experiment(codecs=[{"name": "shift", "points": [6, 4]}], shard_size=1, limit=6, tasks=tasks)
    command = [sys.executable, "-m", "icmbench.harness.cli", "run", str(path), "--out", f"{bucket}/run"]
    process = subprocess.Popen(command, env=os.environ | {"ICMBENCH_SLOW_CODEC": "0.5"}, stderr=subprocess.DEVNULL)
    store = Folder(f"{bucket}/run")
    while process.poll() is None and len(store.fs.find(f"{store.path}/store/streams")) < 4:
        store.fs.invalidate_cache()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(2)  # Its worker process ends a moment later.
    before = calls()["compress shift"]
    done = run(load_experiment(path), f"{bucket}/run")
    assert not done.missing, done.outcome.failures
    assert 4 <= before < 12 and calls()["compress shift"] <= 12 - 4


def test_a_server_that_is_gone_is_one_sentence(experiment, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    Folder(bucket).fs.clear_instance_cache()
    with pytest.raises(UserError, match=f"{bucket}/run cannot be reached .*127.0.0.1:9") as error:
        run(load_experiment(experiment()), f"{bucket}/run")
    assert "\n" not in str(error.value)
