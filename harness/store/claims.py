"""Which realisation of a stream is in force, where decoding a stream twice gives different pixels.

    claims/<digest of the fingerprint>/<key>.<generation>      JSON: the SHA-256 of the pixels, and what the name says

Every task must see the same pixels. Whoever has decoded a stream claims its pixels by creating this file, which fails if it exists:
the claim that exists is the truth, and rows with other pixels are ignored. If the pixels of a claim are lost and another task needs
them, the stream is decoded again and the new pixels are claimed as the next generation; earlier ones stay valid for runs whose
tasks have all their predictions on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import digest

NAME = re.compile(r"(?P<key>[0-9a-f]{32})\.(?P<generation>\d{1,6})")


class Claims:
    """Claimed realisations of the streams of one fingerprint.

    Args:
        folder: the store.
        fingerprint: the codec's fingerprint with its seed.
    """

    def __init__(self, folder: Folder, fingerprint: str) -> None:
        self.folder = folder
        self.place = f"claims/{digest(fingerprint)}"
        self._pixels: dict[str, str] = {}  # SHA-256 of the pixels by file name.
        self._generations: dict[bytes, dict[int, str]] = {}

    def refresh(self) -> None:
        """Learn of the claims of other processes."""
        for path in self.folder.names(self.place):
            name = path.rpartition("/")[2]
            match = NAME.fullmatch(name)
            if match and name not in self._pixels:
                self._pixels[name] = self._read(path)
                self._generations.setdefault(bytes.fromhex(match["key"]), {})[int(match["generation"])] = self._pixels[name]

    def generations(self, key: bytes) -> Mapping[int, str]:
        """SHA-256 of the claimed pixels of a stream, by generation; an unreadable claim is empty text, which no pixels have."""
        return self._generations.get(key, {})

    def claim(self, key: bytes, generation: int, pixels: str) -> str:
        """Claim pixels for a stream.

        Args:
            key: the key of the stream.
            generation: 0, or one more than the last claim whose pixels are lost.
            pixels: SHA-256 of the pixels.

        Returns:
            SHA-256 of the pixels that are in force: another one if another process claimed first.
        """
        name = f"{key.hex()}.{generation}"
        if not self.folder.write(f"{self.place}/{name}", claim_bytes(f"{self.place}/{name}", pixels), replace=False):
            pixels = self._read(f"{self.place}/{name}")
        self._pixels[name] = pixels
        self._generations.setdefault(key, {})[generation] = pixels
        return pixels

    def _read(self, path: str) -> str:
        try:
            return claimed_pixels(path, self.folder.read(path))
        except (OSError, ValueError):
            return ""


def claim_bytes(path: str, pixels: str) -> bytes:
    """The content of a claim. It repeats the claim's name, so that one that was exchanged for another is noticed.

    Args:
        path: name of the claim's file, below the store.
        pixels: SHA-256 of the pixels.
    """
    return (json.dumps({"claim": path.removeprefix("claims/"), "pixels": pixels}) + "\n").encode()


def claimed_pixels(path: str, data: bytes) -> str:
    """SHA-256 of the pixels of a claim.

    Args:
        path: name of the claim's file, below the store.
        data: its content.

    Raises:
        ValueError: the content is not what was written under this name.
    """
    match = re.search(r'"pixels": "([0-9a-f]{64})"', data.decode("ascii", "replace"))
    if match is None or claim_bytes(path, match[1]) != data:
        raise ValueError("its content is not what was written under its name")
    return match[1]
