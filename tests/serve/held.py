"""Stopping a model at will, and waiting for what another thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS = 30.0


class Held:
    """A gate before each forward of a model."""

    def __init__(self, model: Any) -> None:
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: object) -> None:
        self._entered.release()
        assert self._open.wait(SECONDS)

    def reached(self) -> None:
        """Returns when a forward stands before the gate."""
        assert self._entered.acquire(timeout=SECONDS)

    def let_go(self) -> None:
        self._open.set()

    def remove(self) -> None:
        self.let_go()
        self._hook.remove()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is bound to come."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, "it has not come"
        threading.Event().wait(0.005)
