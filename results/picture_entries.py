"""What pictures.json of a run folder holds, as strict models: it is checked before the page shows it.

This is a module of its own because pydantic takes long to load, and only a report with pictures needs it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# What the page shows as a picture: nothing but the data URI of a WebP.
Uri = Annotated[str, Field(pattern=r"^data:image/webp;base64,[A-Za-z0-9+/]+=*$")]


class Reconstruction(BaseModel):
    """A stored reconstruction entry."""

    model_config = ConfigDict(strict=True)
    codec: str
    point: str
    bits: int
    estimated: bool = False
    bpp: float | None
    score: float | None
    damage: float | None
    lost: list[str]
    new: list[str]
    clean: Uri
    drawn: Uri


class Entry(BaseModel):
    """A stored image entry."""

    model_config = ConfigDict(strict=True)
    image: str
    dataset: str
    task: str
    metric: str
    unit: str
    score: float | None
    damage: float | None
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    clean: Uri
    drawn: Uri
    shown: list[Reconstruction] = Field(min_length=1)


class Pictures(BaseModel):
    """The content of pictures.json."""

    model_config = ConfigDict(strict=True)
    entries: list[Entry]
    left_out: list[str]
