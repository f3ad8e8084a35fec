"""A backend on the transformers of one denoising stage of SGLang: told its steps, refreshed, taken off."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_cache_backends.backend import SpanBackend
from dit_cache_backends.errors import AlreadyEnabledError, DitCacheError
from dit_cache_backends.hosts.sglang.telling import around_calls, take_off
from dit_cache_backends.hosts.sglang.whole import give_whole
from dit_cache_backends.summary import Summary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Mount", "mount", "mounted"]

Context = Callable[[], Any]
"""Gives SGLang's forward context, or None."""

_mounts: weakref.WeakKeyDictionary[nn.Module, Mount] = weakref.WeakKeyDictionary()


class Transformers:
    """What a backend is enabled on: the transformers of a stage by name, referred to weakly."""

    def __init__(self, first: nn.Module, second: nn.Module | None) -> None:
        self._first = weakref.ref(first)
        self._second = weakref.ref(second) if second is not None else lambda: None

    @property
    def transformer(self) -> nn.Module | None:
        """The only one, or the one for high noise, or for the prompt."""
        return self._first()

    @property
    def transformer_2(self) -> nn.Module | None:
        """The one for low noise, or without the prompt; None where there is only one."""
        return self._second()


class _Run:
    """Where one transformer stands since its last refresh."""

    def __init__(self, steps: int, to_the_end: bool) -> None:
        self._steps = steps
        self._to_the_end = to_the_end
        self.first: int | None = None
        """The host's number of the first step."""
        self.last: int | None = None
        self.calls: dict[str, int] = {}
        """How often each side of the guidance was called in the last step."""

    def total(self, timesteps: object) -> int:
        """How many steps it makes. ``timesteps`` are those of the whole request, where they are known.

        SGLang gives the number that the request asked for. Solvers of second order make more calls, and where a
        picture is given fewer are made.
        """
        if (
            not self._to_the_end
            or self.first is None
            or not isinstance(timesteps, Tensor)
            or not timesteps.dim()
        ):
            return self._steps
        return len(timesteps) if self.first == 0 else max(self._steps, len(timesteps) - self.first)

    def place(self, number: int, side: str) -> tuple[int, str]:
        """The step and the branch of a call in the host's step ``number``.

        A refresh in the middle of a request begins a run there, and some stages count down.
        """
        if self.first is None:
            self.first = number
        if number != self.last:
            self.last = number
            self.calls.clear()
        made = self.calls[side] = self.calls.get(side, 0) + 1
        # A batch does not say which of several negative branches it is on: they keep their order within a step.
        return abs(number - self.first), side if made == 1 else f"{side} {made}"


class Mount:
    """One backend on one or two transformers. Each has a session of its own, which a refresh ends."""

    def __init__(
        self, backend: SpanBackend, first: nn.Module, second: nn.Module | None, context: Context
    ) -> None:
        self.backend = backend
        self._pipeline = Transformers(first, second)
        self._context = context
        self._runs: dict[str, _Run] = {}
        self._undo: list[Callable[[], None]] = []

    def modules(self) -> dict[str, nn.Module]:
        """The transformers that still exist, by name."""
        found = {name: getattr(self._pipeline, name) for name in ("transformer", "transformer_2")}
        return {name: module for name, module in found.items() if module is not None}

    def name_of(self, transformer: nn.Module) -> str:
        """Which of the two a transformer is."""
        return next(name for name, module in self.modules().items() if module is transformer)

    def put_on(self) -> None:
        """Enable the backend.

        Raises:
            DitCacheError: as ``SpanBackend.enable``; then nothing is left on the transformers.
        """
        modules = self.modules()
        self.backend.enable(self._pipeline)
        for name, module in modules.items():
            self._undo.append(give_whole(module))
            around_calls(module, lambda name=name: self._told(name))  # type: ignore[misc]
            _mounts[module] = self

    def refresh(self, name: str, steps: int) -> None:
        """A run of ``steps`` steps of that transformer begins: all that the last one left is forgotten."""
        self._runs[name] = _Run(steps, to_the_end=name == list(self.modules())[-1])
        with self.backend.session(name):
            self.backend.refresh(self._pipeline, steps)

    def summary(self, name: str = "transformer") -> Summary:
        """What was done in the present or last run of a transformer."""
        return self.backend.summary(name)

    def take_off(self) -> None:
        """Leave the transformers as they were."""
        for module in self.modules().values():
            take_off(module)
            _mounts.pop(module, None)
        for undo in self._undo:
            undo()
        self._undo.clear()
        self.backend.disable()

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        context = self._context()
        number = None if context is None else context.current_timestep
        if type(number) is not int:
            raise DitCacheError(
                f"SGLang called {name} without saying at which step: its forward context has {number!r} for "
                "current_timestep, where a whole number is expected. This stage cannot be cached; set "
                "enable_cache_dit=False for it."
            )
        batch = context.forward_batch
        for other in ("enable_teacache", "enable_spectrum"):
            if getattr(batch, other, False):
                raise AlreadyEnabledError(
                    f"The request has {other} and is cached by {self.backend.name} as well: both would skip. Give one."
                )
        side = {None: "call", False: "cond", True: "uncond"}[getattr(batch, "is_cfg_negative", None)]
        run = self._runs[name]
        index, branch = run.place(number, side)
        total = run.total(getattr(batch, "timesteps", None))
        with self.backend.session(name), self.backend.step(index, total, branch):
            yield


def mount(
    backend: SpanBackend,
    steps: Mapping[str, int],
    first: nn.Module,
    second: nn.Module | None,
    groups: tuple[ProcessGroup, ...],
    context: Context,
) -> Mount:
    """Put ``backend`` on one or two transformers.

    Args:
        backend: fresh, not enabled.
        steps: of each transformer, by the names ``transformer`` and ``transformer_2``.
        first: the transformer.
        second: the other one, where there are two.
        groups: process groups whose ranks hold shards of one request.
        context: gives SGLang's forward context.

    Raises:
        DitCacheError: if they cannot be cached; then nothing is left on them.
    """
    backend.agree_over(*groups)
    made = Mount(backend, first, second, context)
    made.put_on()
    for name, count in steps.items():
        made.refresh(name, count)
    return made


def mounted(transformer: nn.Module) -> Mount | None:
    """What is mounted on a transformer."""
    return _mounts.get(transformer)
