"""Codecs in guests, as the rest of icmbench sees them: the contract of `icmbench.codecs.base.Codec` over a remote object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icmbench.codecs.base import CodecError, Image, RatePoint, fingerprint
from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.process import GuestDied
from icmbench.harness.guests.remote import GuestError, RemoteObject, Source

WANTED = ("name", "point", "fingerprint", "deterministic", "background", "device")
OPTIONAL_METHODS = ("compress_batch", "decompress_batch", "rate_breakdown", "stream_bytes", "facts", "reconstruct_batch")


class GuestCodec:
    """A codec whose object lives in a guest.

    The methods that its class lacks are lacking here too, so that the harness treats it as one in this process.

    Args:
        source: where its class is.
        point: the entry of `points:`.
        arguments: further arguments of its constructor.
        read_facts: reads what decides its results beside its own fingerprint.

    Raises:
        UserError: it cannot be made, or breaks the contract of codecs.
    """

    def __init__(
        self, source: Source, point: Any, arguments: Mapping[str, Any], read_facts: Callable[[bool], Mapping[str, Any]]
    ) -> None:
        self._remote = RemoteObject(source, {"point": point, **arguments}, WANTED, read_facts)
        members, methods = self._remote.members, self._remote.methods
        estimates = "reconstruct" in methods
        if estimates and methods & {"compress", "decompress"}:
            raise UserError(
                f"{source.description}: has both streams and `reconstruct`: a codec writes real bytes, or it estimates its rate"
            )
        lacking = [] if estimates else [name for name in ("compress", "decompress") if name not in methods]
        if lacking:
            raise UserError(
                f"{source.description}: has no method {lacking[0]!r}; a codec has compress and decompress, or reconstruct where it "
                "only estimates its rate"
            )
        self.name = str(members.get("name") or dict(source.place)["class"])
        self.point = _rate_point(members.get("point"), point, source.description)
        own = members.get("fingerprint")
        self.fingerprint = fingerprint(codec=self.name, point=self.point.parameters, own=own, **self._remote.facts)
        self.deterministic = bool(members.get("deterministic", True))
        self.background = bool(members.get("background", False))
        self.device = str(members.get("device") or "cpu")
        self._facts: dict[str, Any] = {}
        required = ("reconstruct",) if estimates else ("compress", "decompress")
        for method in (*required, *OPTIONAL_METHODS):
            if method in methods:
                setattr(self, method, self._facts_of if method == "facts" else getattr(self, f"_{method}"))

    @property
    def has_facts(self) -> bool:
        """Whether the codec takes something from files by an image's id."""
        return "facts" in self._remote.methods

    def learn_facts(self, ids: Sequence[str]) -> None:
        """Ask once for the facts of all images; asked one by one, those of a large dataset would take minutes.

        Raises:
            UserError: the codec's `facts` fails.
        """
        unknown = [image_id for image_id in dict.fromkeys(ids) if image_id not in self._facts]
        try:
            self._facts.update(zip(unknown, self._remote.map("facts", unknown), strict=True))
        except (GuestError, GuestDied) as error:
            raise UserError(f"{self._remote.source.description}: facts: {error}") from error

    def reported_bits(self, image: Image) -> float | None:
        """Bits that the authors' own script reports for an image, if the adapter can tell; for `icmbench guest check`."""
        return float(self._call("reported_bits", image)) if "reported_bits" in self._remote.methods else None

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return self._remote.call(method, *arguments)
        except GuestError as error:
            raise CodecError(f"{self.name}: {error}") from error
        except GuestDied as error:
            key = self._remote.source.environment.key
            raise CodecError(f"{self.name} {self.point.label}: its guest process ({key}) {error}, in {method}") from error

    def _compress(self, image: Image) -> bytes:
        return self._call("compress", image)

    def _decompress(self, data: bytes) -> Image:
        return self._call("decompress", data)

    def _compress_batch(self, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        return list(self._call("compress_batch", list(images), list(ids)))

    def _decompress_batch(self, streams: Sequence[bytes]) -> list[Image]:
        return list(self._call("decompress_batch", list(streams)))

    def _reconstruct(self, image: Image) -> tuple[Image, float]:
        return self._call("reconstruct", image)

    def _reconstruct_batch(self, images: Sequence[Image], ids: Sequence[str]) -> list[tuple[Image, float]]:
        return list(self._call("reconstruct_batch", list(images), list(ids)))

    def _rate_breakdown(self, data: bytes) -> dict[str, int]:
        return dict(self._call("rate_breakdown", data))

    def _stream_bytes(self, data: bytes) -> int:
        return int(self._call("stream_bytes", data))

    def _facts_of(self, image_id: str) -> Any:
        if image_id not in self._facts:
            self._facts[image_id] = self._call("facts", image_id)
        return self._facts[image_id]


def _rate_point(own: Any, given: Any, description: str) -> RatePoint:
    """The point that an adapter states, or one made of the entry of `points:`.

    Raises:
        UserError: it states none, and the entry has no order along the curve.
    """
    if own is None or own == given:
        if isinstance(given, (int, float)) and not isinstance(given, bool) and math.isfinite(given):
            return RatePoint.of("point", given)
        raise UserError(
            f"{description}: set self.point = {{'label': ..., 'order': number, 'parameters': {{...}}}}; the point {given!r} alone "
            "does not say where on the curve it stands"
        )
    try:
        label, order = str(own["label"]), float(own["order"])
        parameters = dict(own.get("parameters") or {"point": given})
        if not label or not math.isfinite(order):
            raise ValueError("label must not be empty, and order must be finite")
        return RatePoint(label, order, parameters)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{description}: point is {own!r}, not a mapping of label, order and parameters: {error}") from error
