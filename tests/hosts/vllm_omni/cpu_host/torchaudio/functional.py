"""As the package says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from torchaudio import missing


def __getattr__(name: str) -> Callable[..., NoReturn]:
    return missing(name)
