"""A context around every call of a transformer, outside of what a backend has put there, and taken off again."""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from dit_cache_backends.engine.untraced import untraced

__all__ = ["around_calls", "take_off"]

Around = Callable[[], AbstractContextManager[None]]

_around: weakref.WeakKeyDictionary[nn.Module, Around] = weakref.WeakKeyDictionary()
_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def around_calls(module: nn.Module, around: Around) -> None:
    """Enter ``around()`` for each call of ``module``, before anything else of the call. Replaces an earlier one."""
    if module not in _around:
        base = type(module)
        if base not in _classes:
            _classes[base] = _subclass(base)
        object.__setattr__(module, "__class__", _classes[base])
    _around[module] = around


def take_off(module: nn.Module) -> None:
    """Give ``module`` the class back that it had; harmless where nothing is around its calls."""
    if _around.pop(module, None) is None:
        return
    base = type(module).__mro__[1]
    if _classes.get(base) is not type(module):
        raise RuntimeError(
            f"The class of a {type(module).__name__} was changed after its cache was mounted, so the mount cannot be "
            "taken off. Undo that change first."
        )
    object.__setattr__(module, "__class__", base)


def _subclass(base: Any) -> type:
    own = base
    while (own.__mro__[1].__module__, own.__mro__[1].__qualname__) == (base.__module__, base.__qualname__):
        own = own.__mro__[1]  # below the one that the backend made of it

    class Told(base):  # type: ignore[misc]
        @untraced
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            around = _around.get(self)
            if around is None:
                return base.__call__(self, *args, **kwargs)
            with around():
                return base.__call__(self, *args, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """Copies and pickles are plain."""
            reduced = base.__reduce_ex__(self, protocol)
            if isinstance(reduced, tuple) and reduced[1:2] == ((Told,),):
                return (copyreg._reconstructor, (own, object, None), *reduced[2:])  # type: ignore[attr-defined]
            return reduced

    Told.__name__, Told.__qualname__, Told.__module__ = base.__name__, base.__qualname__, base.__module__
    Told.__doc__ = base.__doc__
    return Told
