"""`icmbench store`: what a store holds, whether it is whole, what no run needs, and copies of a part."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from icmbench.harness.commands.console import print_error
from icmbench.harness.config.secrets import redact

if TYPE_CHECKING:
    from icmbench.harness.store.cleaning import Cleaning
    from icmbench.harness.store.inventory import CollectionFacts, Inventory


def run_verb(options: argparse.Namespace) -> int:
    """Carry out `icmbench store du`, `ls`, `verify`, `clean` or `copy`; return its exit code."""
    return {"du": _du, "ls": _ls, "verify": _verify, "clean": _clean, "copy": _copy}[options.verb](options)


def _ls(options: argparse.Namespace) -> int:
    from icmbench.harness.store.cleaning import holders_of
    from icmbench.harness.store.inventory import describe_all, open_store, take_inventory
    from icmbench.results.columns import ESTIMATED_MARK

    folder, _ = open_store(options.store)
    inventory = take_inventory(folder)
    facts = describe_all(inventory)
    held = holders_of(folder, inventory, facts)
    if options.json:
        _print_json([_collection_object(each, held) for each in facts])
        return 0
    rows = [("kind", "codec or task", "point", "fingerprint", "rows", "files", "bytes", "latest row", "referred to by")]
    for each in facts:
        fingerprint = (each.fingerprint or f"{each.digest} (no file can be read)") if options.long else each.digest
        counts = (str(each.rows), str(each.files), size_text(each.bytes), _time_text(each.latest))
        name = each.name + ESTIMATED_MARK * each.estimated
        rows.append((each.kind, name, each.point, fingerprint, *counts, "; ".join(held.get(each.digest, [])) or "nobody"))
    _print_table(rows, right=(4, 5, 6))
    _warn(inventory)
    return 0


def _collection_object(facts: CollectionFacts, held: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    keys = ("kind", "digest", "about", "fingerprint", "rows", "files", "bytes", "latest")
    return {key: getattr(facts, key) for key in keys} | {"held_by": list(held.get(facts.digest, []))}


def _du(options: argparse.Namespace) -> int:
    from icmbench.harness.store.inventory import describe_all, open_store, take_inventory

    folder, _ = open_store(options.store)
    inventory = take_inventory(folder)
    lines: dict[tuple[str, str], dict[str, int]] = {}
    for each in describe_all(inventory):
        claims = inventory.claims.get(each.digest, []) if each.kind == "streams" else []
        line = lines.setdefault((each.kind, each.name), {"rows": 0, "files": 0, "bytes": 0})
        line["rows"] += each.rows
        line["files"] += each.files + len(claims)
        line["bytes"] += each.bytes + sum(file.bytes for file in claims)
    lonely = [f for place, files in inventory.claims.items() if ("streams", place) not in inventory.collections for f in files]
    others = [*lonely, *inventory.leases, *inventory.references, *inventory.leftovers]
    for kind, files in (("pictures", inventory.pictures), ("contexts", inventory.contexts), ("other files", others)):
        lines[kind, ""] = {"rows": 0, "files": len(files), "bytes": sum(file.bytes for file in files)}
    total = {key: sum(line[key] for line in lines.values()) for key in ("rows", "files", "bytes")}
    if options.json:
        _print_json({"collections": [{"kind": kind, "name": name, **line} for (kind, name), line in lines.items()], "total": total})
        return 0
    rows = [("kind", "codec or task", "rows", "files", "bytes")]
    for (kind, name), line in [*lines.items(), (("total", ""), total)]:
        rows.append((kind, name, str(line["rows"] or ""), str(line["files"]), size_text(line["bytes"])))
    _print_table(rows, right=(2, 3, 4))
    _warn(inventory)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from icmbench.harness.store.inventory import open_store
    from icmbench.harness.store.verifying import repair, verify

    folder, _ = open_store(options.store)
    damages = []
    for damage in verify(folder):
        damages.append(damage)
        _print(f"{folder.full_path(damage.file.name)}: {damage.cause}: {damage.remedy}")
    if options.repair:
        removed, left = repair(folder, damages)
        _print(f"{len(removed)} damaged files deleted, {len(left)} left")
        return 1 if left else 0
    _print(f"{folder.root}: {len(damages)} damaged files" if damages else f"{folder.root}: every file is whole")
    return 1 if damages else 0


def _clean(options: argparse.Namespace) -> int:
    from icmbench.harness.store.cleaning import clean
    from icmbench.harness.store.inventory import open_store

    folder, _ = open_store(options.store)
    plan = clean(folder, options.run, options.yes)
    verb = "removed" if options.yes else "would remove"
    for reason, (count, size) in _by_reason(plan).items():
        _print(f"{verb} {size_text(size)} in {count} files: {reason}")
    for line in plan.spared:
        _print(f"kept: {line}")
    for holder in plan.holders:
        since = _time_text(holder.since)
        _print(f"kept for {holder.owner}, {size_text(holder.bytes)}: run {holder.run} of {since}, {holder.why}; --run names it")
    _print(f"{verb} {size_text(plan.bytes)} in {len(plan.remove)} files of {folder.root}")
    if plan.remove and not options.yes:
        _print("nothing was removed; add --yes")
    return 0


def _by_reason(plan: Cleaning) -> dict[str, tuple[int, int]]:
    """Number and bytes of the files that are removed, by reason."""
    sums: dict[str, tuple[int, int]] = {}
    for file, reason in plan.remove.items():
        count, size = sums.get(reason, (0, 0))
        sums[reason] = count + 1, size + file.bytes
    return sums


def _copy(options: argparse.Namespace) -> int:
    from icmbench.harness.store.copying import Selection, copy

    selection = Selection(tuple(options.codec), tuple(options.task), tuple(options.fingerprint))
    copied = copy(options.store, options.destination, selection, options.pictures)
    _print(
        f"{copied.rows} rows in {copied.files} shards ({size_text(copied.bytes)}) of {copied.collections} collections, "
        f"{copied.claims} claims, {copied.contexts} contexts, {copied.pictures} pictures copied; {copied.present} shards were there"
    )
    for line in copied.damaged:
        print_error(f"left out, because it is damaged: {line}")
    return 1 if copied.damaged else 0


# Printing.


def size_text(count: int) -> str:
    """A number of bytes as people read it.

    Example:
        >>> [size_text(count) for count in (0, 999, 1000, 23_456_789)]
        ['0 B', '999 B', '1.0 kB', '23.5 MB']
    """
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _time_text(seconds: float | None) -> str:
    try:
        return "?" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "?"


def _print_table(rows: Sequence[Sequence[str]], right: Iterable[int]) -> None:
    """Print columns that are as wide as their widest cell; the last one is not filled up."""
    safe = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in safe) for k in range(len(safe[0]))]
    for row in safe:
        cells = [cell.rjust(widths[k]) if k in {*right} else cell.ljust(widths[k]) for k, cell in enumerate(row)]
        print("  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """A text of one line without control characters, which names in a store may hold, and without credentials."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in redact(text))


def _print(line: str) -> None:
    print(_printable(line), flush=True)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, default=str)
    print()


def _warn(inventory: Inventory) -> None:
    """Say on standard error what was passed over."""
    if inventory.links:
        print_error(f"{len(inventory.links)} links or special files passed over, such as {inventory.links[0]}")
    if inventory.unknown:
        print_error(f"{len(inventory.unknown)} files that icmbench did not name passed over, such as {inventory.unknown[0]}")
