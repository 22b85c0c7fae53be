"""The command line. Each command imports what it needs when it runs, so that `icmbench list` answers at once."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icmbench.harness.config.errors import UserError

if TYPE_CHECKING:
    from icmbench.harness.commands.run import RunOptions, RunResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: done, every cell is there. 1: some are missing. 2: bad input, said in one sentence."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's way to end a job: workers are stopped as by Ctrl-C
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `icmbench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("icmbench: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("icmbench."):
            raise
        return _complain(str(error))  # DatasetError, CodecError, BitstreamError: input, not defects


def _complain(sentence: str) -> int:
    _tell(sentence)
    return 2


def _tell(text: str) -> None:
    """On standard error; control characters of file names and the like do not reach the terminal."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    print(f"icmbench: {shown}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="icmbench", description="Score any image codec by what machines can still do with it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=function)
        return sub

    def experiment(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
        sub.add_argument("--out", metavar="RUN", help="run folder, or an object store's URL (default: runs/<name>)")
        sub.add_argument("--limit", type=int, metavar="N", help="only the first N images of each dataset; marks every table")

    def working(sub: argparse.ArgumentParser, workers: int = 1) -> None:
        sub.add_argument(
            "--workers", type=int, default=workers, metavar="N", help=f"processes that share the cores (default {workers})"
        )
        sub.add_argument(
            "--executor", choices=["local", "ray"], default="local", help="where workers run (ray: RAY_ADDRESS, or local)"
        )
        sub.add_argument("--gpus", type=float, default=0.0, metavar="G", help="GPUs of each worker of a Ray cluster (default 0)")
        sub.add_argument("--keep", choices=["reconstructions"], help="keep every reconstruction as a lossless picture")
        sub.add_argument(
            "--shard", metavar="I/N", help="only the I-th of N parts, for N jobs; then run once without it for the tables"
        )
        sub.add_argument(
            "--images", type=int, default=12, metavar="N", help="images in the report, most damaged first (default 12)"
        )

    def published(sub: argparse.ArgumentParser, about: str) -> None:
        sub.add_argument("--published", nargs="*", metavar="FILE", help=f"{about}: of CSV or JSON files, or those in icmbench")

    def interpolation(sub: argparse.ArgumentParser, method: str | None = None, envelope: str | None = None) -> None:
        known = {"method": (["pchip", "cubic", "akima"], method), "envelope": (["error", "pareto", "isotonic"], envelope)}
        for name, (choices, default) in known.items():
            sub.add_argument(f"--{name}", choices=choices, default=default, help="of BD-rates (pchip, pareto, or the experiment's)")

    sub = command("run", _run, "compute what is missing of an experiment, then its tables and report")
    experiment(sub)
    working(sub)
    sub.add_argument("--bootstrap", type=int, metavar="N", help="replicates behind the 95%% intervals (default 200; papers: 1000)")
    sub = command("plan", _plan, "which cells are missing, how long they take, and what the standard sets would")
    experiment(sub)
    sub = command("report", _report, "write a run's BD table, curves and report anew from its scores.csv")
    sub.add_argument("run", type=Path, metavar="RUN")
    sub.add_argument("--anchor", help="another anchor than the experiment's")
    interpolation(sub)
    sub.add_argument("--bundle", action="store_true", help="also bundle/: tables, CSVs, figures as PNG, SVG and PDF, provenance")
    published(sub, "draw curves that papers report, dashed, in no table")
    sub = command("compare", _compare, "what moved between two runs, and which codec, weight, library, image or setting moved it")
    sub.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    sub.add_argument("--tolerance", type=float, default=1e-9, metavar="T", help="relative difference that counts as equal (1e-9)")
    sub = command("bdrate", _bdrate, "BD-rate table of a CSV: scores.csv, or columns codec, bpp and one a metric")
    sub.add_argument("curves", type=Path, metavar="CURVES.csv")
    sub.add_argument("--anchor", required=True)
    interpolation(sub, "pchip", "pareto")
    sub.add_argument("--lower-is-better", nargs="*", default=[], metavar="METRIC", help="metrics of which less is better")
    published(sub, "let curves that papers report take part")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="write bdrate.csv and report/ with all tables and curves there")
    sub = command("list", _list, "what can be named in an experiment file")
    sub.add_argument("kind", nargs="?", choices=["codecs", "tasks", "datasets", "models", "recipes"])
    for name, function, about in (("encode", _encode, "an image to a stream"), ("decode", _decode, "a stream to an image")):
        sub = command(name, function, about)
        sub.add_argument("--codec", metavar="NAME", required=name == "encode")
        sub.add_argument("--point", help="rate point, as in an experiment file (default: the codec's first)")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a codec option; may be repeated")
        sub.add_argument("input", type=Path, metavar="IN")
        sub.add_argument("output", type=Path, metavar="OUT")
    sub = command("train", _train, "train a codec or a backbone by a recipe; goes on where it stopped")
    sub.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="a file, or a name out of `icmbench list recipes`")
    sub.add_argument("--out", type=Path, metavar="RUN", help="run folder (default: runs/<name>)")
    sub.add_argument("--write", type=Path, metavar="FILE", help="train nothing, but write the named recipe into a file to edit")
    sub = command("pack", _pack, "streams of one codec of a run in one file, for runs that then need not encode")
    verbs = sub.add_subparsers(required=True, metavar="VERB", dest="verb")
    verb = verbs.add_parser("export", help="write a run's streams of one codec; name the file as the codec's `pack` elsewhere")
    verb.add_argument("run", metavar="RUN")
    verb.add_argument("--codec", required=True, metavar="LABEL")
    verb.add_argument("--out", required=True, type=Path, metavar="PACK")
    verb = verbs.add_parser("verify", help="check every hash, and decode a sample where the codec can be used here")
    verb.add_argument("pack", type=Path, metavar="PACK")
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a codec option; may be repeated")
    sub = command("convert", _convert, "write a checkpoint's tensors alone, as .safetensors or .pth")
    sub.add_argument("--trust", action="store_true", help="run what code its pickle holds: only for files whose origin you trust")
    sub.add_argument("input", type=Path, metavar="CHECKPOINT")
    sub.add_argument("output", type=Path, metavar="OUT")
    command("doctor", _doctor, "what of all this is usable on this machine, and why not")
    sub = command("demo", _demo, "ten codecs, three tasks, on photographs, models and small weights from packages; under 5 minutes")
    sub.add_argument("--out", default="runs/demo", metavar="RUN")
    working(sub, workers=2)
    return parser


def _load(options: argparse.Namespace) -> tuple[Any, str]:
    from icmbench.harness.config.experiment import load_experiment
    from icmbench.harness.store.store import safe_name

    loaded = load_experiment(options.experiment)
    if options.limit is not None:
        if options.limit < 1:
            raise UserError("--limit: at least 1")
        loaded = loaded.model_copy(update={"limit": options.limit})
    return loaded, options.out or f"runs/{safe_name(loaded.name)}"


def _run(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run

    loaded, out = _load(options)
    if (options.bootstrap or 0) < 0:
        raise UserError("--bootstrap: a number of replicates, or 0 for no intervals")
    if options.bootstrap is not None:
        loaded = loaded.model_copy(update={"bootstrap": options.bootstrap})
    return _finish(run(loaded, out, _run_options(options), source=options.experiment))


def _demo(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.run import run
    from icmbench.harness.config.experiment import load_experiment

    source = Path(__file__).with_name("demo.yaml")
    return _finish(run(load_experiment(source), options.out, _run_options(options), source=source))


def _run_options(options: argparse.Namespace) -> RunOptions:
    from icmbench.harness.commands.run import RunOptions

    if options.workers < 1:
        raise UserError("--workers: at least 1")
    shard = None
    if options.shard is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", options.shard)
        shard = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= shard[0] <= shard[1]:
            raise UserError(f"--shard {options.shard}: write I/N with I from 1 to N")
    return RunOptions(options.workers, options.executor, options.gpus, bool(options.keep), shard, max(0, options.images))


def _finish(result: RunResult) -> int:
    from icmbench.harness.commands.show import show_bdrate, show_scores

    if result.table_spec is not None:
        if len(result.bdrate):
            show_bdrate(result.table_spec.only_primary(result.bdrate))
        else:
            show_scores(result.table_spec.only_primary(result.scores))
        print(f"report: {result.report}")
    reasons: dict[str, list[str]] = {}
    for failure in result.outcome.failures:
        reasons.setdefault(failure.reason, []).append(failure.cell)
    for why, cells in reasons.items():
        _tell(f"{cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}: {why}")
    if result.missing:
        _tell("\n  ".join([f"{len(result.missing)} cells are missing:", *result.missing]))
    for cell in result.outcome.renewed:
        _tell(f"{cell}: its pixels were not kept, so all its tasks were computed anew on other ones")
    return 1 if result.missing or (result.outcome.failures and not result.tolerated) else 0


def _plan(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.plan import plan, standard
    from icmbench.harness.commands.show import show_plan, show_standard
    from icmbench.harness.store.store import Store
    from icmbench.harness.work.bench import Bench

    loaded, out = _load(options)
    bench = Bench(loaded, Store(out))
    show_plan(plan(bench))
    show_standard(standard(bench))
    return 0


def _report(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.show import show_bdrate
    from icmbench.harness.derive.tables import bundle, derive, recorded

    inputs = recorded(options.run, options.anchor, options.published, options.method, options.envelope)
    bdrate, report = derive(options.run, inputs)
    show_bdrate(inputs.table_spec.only_primary(bdrate))
    print(f"report: {report}")
    if options.bundle:
        print(f"bundle: {bundle(options.run, inputs, bdrate)}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from icmbench.results.compare import compare

    first, second = options.runs
    print(compare(first, second, options.tolerance), end="")
    return 0


def _bdrate(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.show import show_bdrate
    from icmbench.harness.derive.tables import gather_published
    from icmbench.harness.store.store import writing
    from icmbench.results.published import with_reported
    from icmbench.results.report import write_report
    from icmbench.results.scores import read_scores
    from icmbench.results.tables import bdrate_frame
    from icmbench.results.writers import write_csv

    scores = read_scores(options.curves, options.lower_is_better)
    if options.published is not None:
        scores = with_reported(scores, gather_published(options.published))
    bdrate = bdrate_frame(scores, options.anchor, options.method, options.envelope)
    show_bdrate(bdrate)
    if options.out:
        with writing(options.out):
            options.out.mkdir(parents=True, exist_ok=True)
            write_csv(bdrate, options.out / "bdrate.csv")
            print(f"report: {write_report(options.out, scores, bdrate, {'title': options.curves.stem})}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.doctor import entries
    from icmbench.harness.config.plugins import KINDS
    from icmbench.harness.config.recipe import entries as recipes

    for kind in [options.kind] if options.kind else [*KINDS, "recipes"]:
        print(f"{kind}:" if not options.kind else "", end="\n" if not options.kind else "")
        found = recipes() if kind == "recipes" else entries(kind)
        width = max((len(entry.name) for entry in found), default=0)
        for entry in found:
            print(f"  {entry.name:<{width}}  {entry.summary}")
            for line in filter(None, (entry.weights and f"weights: {entry.weights}", entry.trouble)):
                print(f"  {'':<{width}}    {line}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from icmbench.harness.config import recipe as recipes

    if options.write is not None:
        recipes.write(str(options.recipe), options.write)
        print(f"{options.write}: set its paths, then icmbench train {options.write}")
        return 0
    from icmbench.harness.commands.training import train
    from icmbench.harness.store.store import safe_name

    recipe = recipes.load_recipe(options.recipe)
    print(f"weights: {train(recipe, options.out or Path('runs') / safe_name(recipe.name))}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.doctor import entries, machine
    from icmbench.harness.config.plugins import KINDS

    for name, fact in machine(Path.cwd()).items():
        print(f"{name:<12} {fact}")
    for kind in KINDS:
        print(f"{kind}:")
        for entry in entries(kind):
            print(f"  {'ok' if not entry.trouble else '--'}  {entry.name}{': ' + entry.trouble if entry.trouble else ''}")
    return 0


def _pack(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import built
    from icmbench.harness.store import pack

    if options.verb == "export":
        manifest = pack.export(options.run, options.codec, options.out)
        print(f"{options.out}: {sum(len(point.streams) for point in manifest.points)} streams of {len(manifest.points)} points")
        return 0
    opened = pack.Pack(options.pack)
    print(f"{options.pack}: {opened.check()} streams of {opened.manifest.codec!r} as recorded, pack SHA-256 {opened.sha256}")
    for line in pack.decode_sample(opened, lambda given, extra: built(opened.manifest.codec, options.set, given, extra)):
        print(line)
    return 0


def _encode(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import built, encode

    size, bpp = encode(options.input, lambda: built(options.codec, options.set, options.point), options.output)
    print(f"{size} bytes, {bpp:.4f} bpp")
    return 0


def _decode(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import built, decode

    decode(options.input, options.codec, lambda name: built(name, options.set, options.point), options.output)
    return 0


def _convert(options: argparse.Namespace) -> int:
    from icmbench.harness.commands.coding import convert

    print(f"{options.output}: {convert(options.input, options.output, options.trust)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
