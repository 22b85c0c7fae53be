"""Builds the plug-ins of an experiment: datasets, codecs at all their points and seeds, and tasks with their models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from icmbench.codecs.base import Codec
from icmbench.harness.config import plugins
from icmbench.harness.config.devices import OPTION, resolve_device
from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import CodecSection, Experiment
from icmbench.harness.config.options import bind
from icmbench.harness.guests.sections import find_plugin
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.store import Store
from icmbench.harness.work.adoption import adopt
from icmbench.harness.work.attempt import reason
from icmbench.harness.work.series import AnySeries, Originals, Series
from icmbench.tasks.base import Dataset, Task


class Builder:
    """Makes the live objects of an experiment.

    Args:
        experiment: the validated experiment file.
        store: holds the streams that codecs adopt; without it none are adopted.
    """

    def __init__(self, experiment: Experiment, store: Store | None = None) -> None:
        self.experiment, self.store = experiment, store
        self._codec_plugins: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}  # By the key of their section.

    def datasets(self) -> dict[str, Dataset]:
        """Datasets by name, cut to the experiment's limit. Raises UserError if one cannot be built or is empty."""
        built = {}
        for name, section in self.experiment.datasets.items():
            where = f"datasets.{name}"
            options = {key: value for key, value in section.items() if key != "kind"}
            limit = options.get("limit")
            if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
                raise UserError(f"{where}.limit: a number of images, at least 1, not {limit!r}")
            if self.experiment.limit is not None:
                options["limit"] = min(self.experiment.limit, limit or self.experiment.limit)
            plugin = plugins.load("datasets", section["kind"], where)
            dataset = self._build(plugin, section["kind"], options, where, {"name": name})
            if not dataset.ids:
                raise UserError(f"{where}: the dataset has no images")
            built[name] = dataset
        return built

    def tasks(self, datasets: Mapping[str, Dataset]) -> dict[str, Task]:
        """Tasks by label. Raises UserError if one cannot be built, has no images, or cannot score as the experiment asks."""
        built = {}
        for index, section in enumerate(self.experiment.tasks):
            where = f"tasks.{index}"
            supplied: dict[str, Any] = {"dataset": datasets[section.dataset], "reference": section.reference}
            if section.model is not None:
                supplied["model"] = self._build_model(section.model, f"{where}.model")
                serves = supplied["model"].task
                if section.name not in ([serves] if isinstance(serves, str) else serves):
                    raise UserError(f"{where}.model: {section.model['name']!r} is a model for {serves}, not for {section.name}")
            task: Task = self._build(plugins.load("tasks", section.name, where), section.name, section.set, where, supplied)
            if section.reference == "original" and not task.has_pseudo_labels:
                raise UserError(f"{where}: task {section.name!r} has no pseudo-labels; remove `reference: original`")
            if not task.ids:
                lacking = f"was given no {task.annotation!r} annotations to score against"
                raise UserError(f"{where}: dataset {section.dataset!r} {lacking}")
            built[section.label] = task
        return built

    def _build_model(self, section: Mapping[str, Any], where: str) -> Any:
        """The model of a task's section."""
        name, environment = section["name"], section.get("environment")
        options = {key: value for key, value in section.items() if key not in ("name", "environment")}
        plugin, options = find_plugin(self.experiment, "models", name, options, where, environment)
        return self._build(plugin, name, options, where, {})

    def packs(self) -> dict[str, Pack]:
        """Anchor packs by codec label. Raises UserError if one cannot be read."""
        return {section.label: Pack(self.experiment.folder / section.pack) for section in self.experiment.codecs if section.pack}

    def series(self, packs: Mapping[str, Pack]) -> list[AnySeries]:
        """The originals, and then all codecs at all points and seeds.

        Raises:
            UserError: a codec cannot be built, or two points cannot be told apart.
        """
        built: list[AnySeries] = [Originals()]
        for index, section in enumerate(self.experiment.codecs):
            built += self._series_of_codec(section, f"codecs.{index}", packs.get(section.label))
        if self.experiment.only_points and len(built) == 1:
            raise UserError(f"--only point={self.experiment.only_points[0]}: none of the selected codecs has such a point")
        return built

    def _series_of_codec(self, section: CodecSection, where: str, pack: Pack | None) -> list[Series]:
        plugin, _ = self._codec_plugin(section, where)
        packed = list({str(p.given): p.given for p in pack.manifest.points}.values()) if pack else None
        points = section.points if section.points is not None else packed or getattr(plugin, "default_points", None)
        if not points:
            raise UserError(f"{where}.points: {section.name!r} has no default rate points; list some")
        only = self.experiment.only_points
        written = [point for point in points if str(point) in only]
        points = written or points  # Names that only the codec knows, such as `quality=20`, are compared once it is built.
        if section.seeds and "seed" not in inspect.signature(plugin).parameters:
            raise UserError(f"{where}.seeds: codec {section.name!r} takes no seed; remove the key")
        seeds: list[int | None] = [*section.seeds] if section.seeds else [None]
        series: list[Series] = []
        for point in points:
            for seed in seeds:
                codec = self._build_codec(section, where, point, seed, pack)
                if only and not written and codec.point.label not in only:
                    continue
                series.append(Series(section.label, codec.point.label, seed, codec, point))
        names: dict[str, Series] = {}
        fingerprints: dict[str, Series] = {}
        for each in series:
            if each.name in names:
                raise UserError(f"{where}.points: {each.name!r} is listed twice")
            twin = fingerprints.setdefault(each.fingerprint, each)
            if twin is not each:
                raise UserError(
                    f"{where}.points: {twin.name!r} and {each.name!r} have one fingerprint, so that their streams cannot be told "
                    "apart; list one of them, or let the codec's fingerprint hold what differs"
                )
            names[each.name] = each
        return series

    def _codec_plugin(self, section: CodecSection, where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The class of a section's codec, and the options that are its own; asked for once, since a guest takes seconds."""
        if where not in self._codec_plugins:
            found = find_plugin(self.experiment, "codecs", section.name, section.set, f"{where}.set", section.environment)
            self._codec_plugins[where] = found
        return self._codec_plugins[where]

    def _build_codec(self, section: CodecSection, where: str, point: Any, seed: int | None, pack: Pack | None) -> Codec:
        """A codec at one point. Where a pack has its streams, a codec that can only decode replaces one that cannot be built."""
        supplied = {"point": point, "decode_only": False} | ({} if seed is None else {"seed": seed})
        if pack and pack.manifest.codec != section.name:
            raise UserError(f"{where}.pack: {pack.path} holds streams of {pack.manifest.codec!r}, not of {section.name!r}")
        plugin, options = self._codec_plugin(section, where)
        try:
            codec: Codec = self._build(plugin, section.name, options, f"{where}.set", supplied)
        except UserError:
            if not pack or "decode_only" not in inspect.signature(plugin).parameters:
                raise
            supplied["decode_only"] = True
            codec = self._build(plugin, section.name, options, f"{where}.set", supplied)
        methods = () if hasattr(codec, "reconstruct") else ("compress", "decompress")
        lacking = [key for key in ("name", "point", "fingerprint", *methods) if not hasattr(codec, key)]
        if lacking:
            raise UserError(f"{where}: codec {section.name!r} has no {lacking[0]!r}; see icmbench.codecs.base.Codec")
        if section.adopt and self.store is not None and adopt(codec, section.adopt, where, seed, self.store, pack):
            return codec
        if pack:
            pack.adopt(codec, where, bool(supplied["decode_only"]), seed)
        return codec

    def _build(
        self, plugin: Callable[..., Any], name: str, options: Mapping[str, Any], where: str, supplied: Mapping[str, Any]
    ) -> Any:
        """An object of a plug-in, made from the options of the experiment file and the arguments that the harness supplies."""
        bound = bind(plugin, options, where, self.experiment.folder, tuple(supplied))
        accepted = inspect.signature(plugin).parameters
        if "model" in supplied and "model" not in accepted:
            raise UserError(f"{where}: {name!r} takes no model; remove the key")
        if "model" in accepted and accepted["model"].default is inspect.Parameter.empty and "model" not in supplied:
            raise UserError(f"{where}: {name!r} needs a `model`; `icmbench list models` names them")
        if supplied.get("reference") == "original" and "reference" not in accepted:
            raise UserError(f"{where}: {name!r} compares with the source by itself; remove `reference`")
        if OPTION in accepted and (device := bound.get(OPTION, self.experiment.device)) is not None:
            bound[OPTION] = resolve_device(device, f"{where}.{OPTION}" if OPTION in bound else OPTION)
        if "folder" in accepted and "point" in supplied:
            bound.setdefault("folder", self.experiment.folder)  # Relative paths of programs and files start here.
        try:
            with plugins.explain_missing_package(name, plugin):
                return plugin(**{key: value for key, value in supplied.items() if key in accepted}, **bound)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # A plug-in of another package may raise anything, also for a path that is absent.
            raise UserError(f"{where.removesuffix('.set')} ({name}): {name!r} cannot be made: {reason(error)}") from error
