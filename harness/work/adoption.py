"""Streams that were made by another build of a codec, which an experiment takes over by the digest of their fingerprint.

Two builds of VTM have two hashes, so that their streams are kept apart although they are most likely the same bytes. Whoever knows
that they are names the stored fingerprints under `adopt:`; `icmbench store ls` prints their digests. The codec here then decodes
the stored streams, and fails by name if one gives other pixels than those recorded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from icmbench.codecs.base import Codec
from icmbench.harness.config.errors import UserError
from icmbench.harness.store.inventory import describe, take_inventory
from icmbench.harness.store.keys import digest
from icmbench.harness.store.pack import Pack
from icmbench.harness.store.store import Store


def adopt(codec: Codec, digests: Sequence[str], where: str, seed: int | None, store: Store, pack: Pack | None) -> bool:
    """Give a codec the stored fingerprint of its rate point and seed, if the experiment names it.

    Args:
        codec: the codec at one rate point.
        digests: what stands under `adopt`, as `icmbench store ls` prints it.
        where: key of the codec's section; error messages begin with it.
        seed: the codec's seed, if the experiment lists seeds.
        store: where the streams are looked for, beside the pack.
        pack: the codec's anchor pack, if it has one.

    Returns:
        Whether one of the digests belongs to this rate point and seed.

    Raises:
        UserError: nothing is stored under a digest, or it belongs to another codec.
    """
    packed = {digest(json.dumps([point.fingerprint, point.seed])): point for point in pack.manifest.points} if pack else {}
    collections = take_inventory(store.folder).collections
    for name in digests:
        if name in packed:
            fingerprint, facts = packed[name].fingerprint, (codec.name, packed[name].label, packed[name].seed)
        elif ("streams", name) in collections:
            stored = describe(store.folder, collections["streams", name])
            fingerprint, recorded_seed = json.loads(stored.fingerprint)
            facts = (stored.name, stored.point, recorded_seed)
        else:
            raise UserError(
                f"{where}.adopt: {store.folder.root} holds no streams of {name!r}; `icmbench store ls` prints what it holds"
            )
        if facts[0] != codec.name:
            raise UserError(f"{where}.adopt: {name!r} is of codec {facts[0]!r}, not of {codec.name!r}")
        if facts[1:] == (codec.point.label, seed):
            codec.fingerprint = fingerprint
            return True
    return False
