"""How a command uses a store: with a lease while it works, and a reference for the time after."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from icmbench.harness.store.folder import Folder
from icmbench.harness.store.leases import hold
from icmbench.harness.store.references import LEASES, leave_reference, refuse_while_cleaned
from icmbench.harness.store.whole_files import WriteRefusedError


@contextmanager
def use_store(
    store: Folder, run: Folder, facts: Mapping[str, Any], fingerprints: Collection[str], is_part: bool = False
) -> Iterator[bool]:
    """Protect what a run needs in a store while the context lasts, and afterwards as long as the run folder is there.

    A store that can only be read takes neither lease nor reference, so that its owner's `icmbench store clean` does not know of
    the run. It serves as long as it has all that the run needs.

    Args:
        store: the store.
        run: the run folder.
        facts: what the lease says of the run.
        fingerprints: digests of the fingerprints of the run's codec points, tasks and contexts.
        is_part: see `leave_reference`.

    Yields:
        Whether the store can be written.

    Raises:
        UserError: the store is being cleaned, or can neither be written nor read.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(store, LEASES, {**facts, "fingerprints": sorted(fingerprints)}))
            refuse_while_cleaned(store)
            leave_reference(store, run, fingerprints, is_part)
            can_write = True
        except WriteRefusedError as refusal:
            try:
                refuse_while_cleaned(store)
            except OSError:
                raise refusal from None
            can_write = False
        yield can_write


def read_only_note(store: Folder) -> str:
    """A sentence on what it means that a store can only be read."""
    return f"{store.root} can only be read, so that its owner's `icmbench store clean` does not know that this run needs it"
