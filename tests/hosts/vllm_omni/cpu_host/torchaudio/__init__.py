"""Stands in for torchaudio, which has no release for this torch: it can be imported, and that is all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

__version__ = "0"


def missing(name: str) -> Callable[..., NoReturn]:
    """What each of its names stands for."""

    def use(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"torchaudio's {name} is not there: these tests make no sound")

    return use
