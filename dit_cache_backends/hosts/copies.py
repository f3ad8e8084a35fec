"""A pipeline for one request: the weights are shared, what a run changes is its own."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, cast

from torch import nn

__all__ = ["Front", "front_of", "own_copy"]

_BOUNDARY = "_dit_cache_boundary"


class _Boundary:
    """Called behind each step of a scheduler. Copies of the scheduler share it: some pipelines step copies."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def __deepcopy__(self, memo: object) -> _Boundary:
        return self


def own_copy(pipeline: Any, boundary: Callable[[], None], progress_bar: bool) -> Any:
    """A shallow copy of ``pipeline`` with a scheduler of its own, behind each step of which ``boundary`` is called.

    Models are shared. Schedulers, guiders and the like, which keep the state of a run, are copied in depth. What has no
    attributes to copy (a plain function) is returned as it is.
    """
    mine = copy.copy(pipeline)
    own = getattr(mine, "__dict__", None)
    if own is None or mine is pipeline:
        return mine
    for name, value in list(own.items()):
        # Not by setattr: a pipeline of diffusers would note a change of its configuration.
        if not isinstance(value, (nn.Module, type)) and hasattr(value, "from_config"):
            own[name] = copy.deepcopy(value)
    scheduler = own.get("scheduler")
    if callable(getattr(scheduler, "step", None)):
        vars(scheduler)[_BOUNDARY] = _Boundary(boundary)
        scheduler.__class__ = _stepped(cast(Hashable, type(scheduler)))
    if hasattr(mine, "set_progress_bar_config"):
        config = dict(own.get("_progress_bar_config") or {})
        own["_progress_bar_config"] = config if progress_bar else config | {"disable": True}
    return mine


@functools.cache
def _stepped(base: Any) -> Any:
    """The subclass of a scheduler's class that calls the boundary behind each step."""

    class Stepped(base):  # type: ignore[misc]
        # Pipelines read its signature.
        @functools.wraps(base.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            out = base.step(self, *args, **kwargs)
            vars(self)[_BOUNDARY].call()
            return out

    Stepped.__name__, Stepped.__qualname__, Stepped.__module__ = (
        base.__name__,
        base.__qualname__,
        base.__module__,
    )
    return Stepped


class Front:
    """Stands for whatever copy of a pipeline runs in the present thread, else for the pipeline itself.

    A backend is enabled on it, and reads from it the scheduler of the request at hand.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._here = threading.local()

    def show(self, pipeline: Any) -> None:
        """Stand for ``pipeline`` in this thread; for the original one again with None."""
        self._here.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        pipeline = getattr(self._here, "pipeline", None)
        return getattr(self._pipeline if pipeline is None else pipeline, name)


def front_of(pipeline: Any) -> Front:
    """A front of a class of the same name, by which some backends choose."""
    cls = type(pipeline)
    members = {"_dit_modules": cls._dit_modules} if hasattr(cls, "_dit_modules") else {}
    made: Front = type(cls.__name__, (Front,), members)(pipeline)
    return made
