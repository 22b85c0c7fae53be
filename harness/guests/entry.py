"""The plug-ins `guest`, as the entry points name them: an adapter file in the interpreter that runs icmbench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from icmbench.harness.guests.codec import GuestCodec
from icmbench.harness.guests.model import GuestModel
from icmbench.harness.guests.plugin import adapter_plugin, own_environment


class AdapterCodec(GuestCodec):
    """A codec of an adapter file, which needs nothing of icmbench; `environment` names the interpreter that it runs in.

    Args:
        point: an entry of `points:`, which the adapter understands.
        file: the adapter file, or the name of one that comes with icmbench, such as ms_illm.
        **options: `class`, the name of the adapter's class where the file has several; all others are the adapter's own.

    Raises:
        UserError: there is no such file or class, or the codec cannot be made.
    """

    weights = "whatever the adapter's docstring says"

    def __init__(self, point: Any, *, file: Path | str, **options: Any) -> None:
        plugin, own = adapter_plugin("codecs", {"file": file, **options}, "guest", own_environment(), Path.cwd())
        super().__init__(*plugin.prepare(point, own))


class AdapterModel(GuestModel):
    """A task model of an adapter file, which needs nothing of icmbench; `environment` names the interpreter that it runs in.

    Args:
        file: the adapter file.
        **options: `class`, the name of the adapter's class where the file has several; all others are the adapter's own.

    Raises:
        UserError: there is no such file or class, or the model cannot be made.
    """

    weights = "whatever the adapter's docstring says"

    def __init__(self, *, file: Path | str, **options: Any) -> None:
        plugin, own = adapter_plugin("models", {"file": file, **options}, "guest", own_environment(), Path.cwd())
        source, _, arguments, read_facts = plugin.prepare(None, own)
        super().__init__(source, arguments, read_facts)
