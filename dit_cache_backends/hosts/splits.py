"""Sharing the tokens around a cache's wrapper instead of inside it.

Some plans of diffusers (Wan, Qwen-Image) hand each process its share of the tokens at the entry of the first block, in
a hook that lies within the block's call. A cache's wrapper lies around that call: it would see all tokens come in and
a share go out. So the same hook is called around the wrapper.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["OuterSplit"]

_hooks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


class OuterSplit:
    """Calls diffusers' split hook before ``block``, whatever wraps its call."""

    def __init__(self, block: nn.Module, plan: Any, config: Any) -> None:
        from diffusers.hooks.context_parallel import ContextParallelSplitHook

        hook = ContextParallelSplitHook(plan, config)
        hook.initialize_hook(block)
        _hooks[block] = hook
        self._block = block
        self._put_on()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The block's class as it is without this, for a while."""
        _swap(self._block, type(self._block).__mro__[1])
        try:
            yield
        finally:
            self._put_on()

    def _put_on(self) -> None:
        _swap(self._block, _splitting(type(self._block)))


def _swap(module: nn.Module, cls: type) -> None:
    object.__setattr__(module, "__class__", cls)


_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def _splitting(base: Any) -> type:
    found = _classes.get(base)
    if found is not None:
        return found

    class Splitting(base):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = _hooks[self].pre_forward(self, *args, **kwargs)
            return base.__call__(self, *args, **kwargs)

    Splitting.__name__, Splitting.__qualname__ = base.__name__, base.__qualname__
    Splitting.__module__ = base.__module__
    _classes[base] = Splitting
    return Splitting
