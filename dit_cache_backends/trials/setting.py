"""What is drawn with: no cache, or a backend with its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """One way to draw, a row of a comparison."""

    label: str
    config: Mapping[str, Any] | None = field(default=None)
    """Options of the backend; None draws dense."""
    steps: int | None = None
    """Steps of this setting, where it is not the number of the others."""
    backend: str | type = "cache_dit"
    """Its name, or its class."""
    family: str = ""
    """Settings of one family are one line in a plot."""


DENSE = Setting("dense")
