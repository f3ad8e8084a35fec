"""How long the transformers of a pipeline take, apart from text encoders and decoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Stopwatch", "transformer_seconds"]


@dataclass
class Stopwatch:
    """Seconds spent in the watched modules' forwards, and how many there were."""

    seconds: float = 0.0
    calls: int = 0


@contextmanager
def transformer_seconds(
    modules: Iterable[nn.Module], before: Callable[[], object] | None = None
) -> Iterator[Stopwatch]:
    """Time the forwards of ``modules`` that this thread makes within the block. On a GPU each forward is waited for.

    ``before`` is called ahead of each. A module compiled in place (``module.compile()``) is left out: hooks would be
    compiled with it, anew each time.
    """
    watch = Stopwatch()
    began: list[float] = []
    thread = threading.get_ident()

    def begin(module: nn.Module, *_: object) -> None:
        if threading.get_ident() != thread:
            return
        _wait_for(module)
        began.append(time.perf_counter())
        if before is not None:
            before()

    def end(module: nn.Module, *_: object) -> None:
        if threading.get_ident() != thread:
            return
        _wait_for(module)
        watch.seconds += time.perf_counter() - began.pop()
        watch.calls += 1

    with ExitStack() as hooks:
        for module in modules:
            if getattr(module, "_compiled_call_impl", None) is not None:
                continue
            hooks.callback(module.register_forward_pre_hook(begin).remove)
            # Also after an exception, else the next forward would be counted from the failed one's beginning.
            hooks.callback(module.register_forward_hook(end, always_call=True).remove)
        yield watch


def _wait_for(module: nn.Module) -> None:
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.is_cuda:
        torch.cuda.synchronize(parameter.device)
