"""`icmbench run`: everything that is missing is computed, then all tables are derived anew."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from icmbench.harness import executors
from icmbench.harness.bench import Bench
from icmbench.harness.cell import Failure
from icmbench.harness.environment import environment
from icmbench.harness.experiment import Experiment
from icmbench.harness.progress import Bar
from icmbench.harness.scoring import score
from icmbench.harness.store import Store
from icmbench.harness.tables import derive


@dataclass
class RunResult:
    """What a run came to. It is complete when no cell is missing."""

    scores: pd.DataFrame
    bdrate: pd.DataFrame
    report: Path
    failures: list[Failure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    codec_images: int = 0
    model_images: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def run(experiment: Experiment, out: Path, workers: int = 1, keep: bool = False, source: Path | None = None) -> RunResult:
    """Run an experiment into a folder; what is there is kept and only what is missing is computed.

    `keep` keeps all reconstructions as lossless pictures. `source` is the experiment file, copied beside the results.
    Raises UserError for bad input; failures of single cells are in the result.
    """
    store = Store(out)
    store.sweep()
    bench = Bench(experiment, store)
    started = time.perf_counter()
    units = executors.make_units(bench, workers)
    bench.tasks  # noqa: B018  bad task options are to be told before any work
    if source is not None:
        store.write("experiment.yaml", source.read_bytes())
    store.write_json("environment.json", environment(bench))
    for label in bench.tasks:
        bench.prepare(label)
    result_failures: list[Failure] = []
    codec_images = model_images = 0
    with Bar(experiment.name, sum(unit.images for unit in units)) as bar:
        if workers == 1 and experiment.timeout is None:
            outcomes = executors.in_process(bench, units, keep, bar.advance)
        else:
            outcomes = executors.process_pool(bench, units, keep, bar.advance, workers)
        for outcome in outcomes:
            result_failures += outcome.failures
            codec_images += outcome.codec_images
            model_images += outcome.model_images
    worked = time.perf_counter()
    scores, missing = score(bench)
    scores.to_csv(out / "scores.csv", index=False)
    scored = time.perf_counter()
    bdrate, report = derive(out, scores, experiment.anchor if experiment.anchor in set(scores["codec"]) else None, experiment.name)
    seconds = {"loop": worked - started, "scoring": scored - worked, "report": time.perf_counter() - scored}
    return RunResult(scores, bdrate, report, result_failures, missing, codec_images, model_images, seconds)
