"""Attaching to a transformer: its class and its blocks' classes get one subclass each, taken back by ``detach``.

The subclass wraps the instance's ``__call__``, so that compiled, hooked, offloaded and LoRA-carrying forwards lie
inside.
There is one subclass per class, never one per instance: torch.compile guards on the type, and would compile every block
anew. What an instance belongs to stands in a map beside it, so that copies and pickles of it are plain.
"""

import copyreg
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dit_cache_backends.engine.attachment import Attachment
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.untraced import untraced, untraced_module
from dit_cache_backends.errors import AlreadyEnabledError
from dit_cache_backends.models import uncompiled

_sites: "dict[int, tuple[Attachment, Site, weakref.ref[nn.Module]]]" = {}
"""By the id of the block: a weak map costs four times as much to look into, at every call of every block."""
_attached: "weakref.WeakKeyDictionary[nn.Module, Attachment]" = weakref.WeakKeyDictionary()
_block_classes: "weakref.WeakKeyDictionary[type, type]" = weakref.WeakKeyDictionary()
_transformer_classes: "weakref.WeakKeyDictionary[type, type]" = weakref.WeakKeyDictionary()
_lock = threading.RLock()

_UNTRACED = (
    "attachment call clock gates offload passing plan predictors ranks residuals retired sessions visit"
)
for _name in _UNTRACED.split():
    untraced_module(import_module(f"{__package__}.{_name}"))


def attach(attachment: Attachment, transformer: nn.Module) -> None:
    """Put the wrappers of ``attachment`` around ``transformer`` and its blocks.

    Raises:
        AlreadyEnabledError: if a backend is enabled on it already.
    """
    outer, inner = transformer, uncompiled(transformer)
    with _lock:
        taken = [module for module in (outer, inner) if module in _attached]
        taken += [block for block, _ in attachment.sites() if id(block) in _sites]
        if taken:
            raise AlreadyEnabledError(
                f"A cache backend is enabled already on this {type(outer).__name__}, or on a model that has its "
                f"{type(taken[0]).__name__}. Call disable(...) of that backend first."
            )
        for block, site in attachment.sites():
            _place(block, attachment, site)
            _wrap(block, _block_classes, _block_members)
        _attached[outer] = attachment
        _wrap(outer, _transformer_classes, _transformer_members)
        attachment.sites_done()


def detach(transformer: nn.Module, attachment: Attachment) -> list[tuple[nn.Module, Site]]:
    """Give ``transformer`` and its blocks their own classes back, and tell the blocks with their sites.

    What is not attached is left as it is.
    """
    taken: list[tuple[nn.Module, Site]] = []
    with _lock:
        if _attached.get(transformer) is not attachment:
            return taken
        del _attached[transformer]
        _restore(transformer, _transformer_classes)
        for key, (owner, site, reference) in list(_sites.items()):
            if owner is attachment:
                del _sites[key]
                block = reference()
                if block is not None:
                    _restore(block, _block_classes)
                    taken.append((block, site))
    return taken


def is_attached(transformer: nn.Module) -> bool:
    """Whether a backend is enabled on ``transformer``."""
    return transformer in _attached or uncompiled(transformer) in _attached


def _place(block: nn.Module, attachment: Attachment, site: Site) -> None:
    key = id(block)
    # Gone with the block, before another object can have its id.
    _sites[key] = (attachment, site, weakref.ref(block, lambda _: _sites.pop(key, None)))


def _swap(module: nn.Module, cls: type) -> None:
    # OptimizedModule hands attributes on to what it wraps; the class of the instance itself is meant.
    object.__setattr__(module, "__class__", cls)


def _wrap(module: nn.Module, known: "weakref.WeakKeyDictionary[type, type]", members: Any) -> None:
    """Give ``module`` the subclass of its class, which is made once."""
    base = type(module)
    if any(known.get(parent) is cls for cls, parent in pairwise(base.__mro__)):
        return  # Another swap was put on top of ours before, so that it could not be taken back: it is live again.
    cls = known.get(base)
    if cls is None:
        cls = known[base] = members(base)
        cls.__name__, cls.__qualname__, cls.__module__ = base.__name__, base.__qualname__, base.__module__
        cls.__doc__ = base.__doc__
    _swap(module, cls)


def _restore(module: nn.Module, known: "weakref.WeakKeyDictionary[type, type]") -> None:
    base = type(module).__mro__[1]
    if known.get(base) is type(module):
        _swap(module, base)
    else:
        warnings.warn(
            f"The class of a {type(module).__name__} was changed again after the cache backend was enabled; it is left "
            "as it is, with a wrapper in it that does nothing any more.",
            stacklevel=4,
        )


def _plain_reduce(reduced: Any, wrapped: type, base: type) -> Any:
    """Replace the wrapped class by its base in what ``__reduce_ex__`` gave, so that copies and pickles are plain."""
    if not isinstance(reduced, tuple):
        return reduced
    function, arguments, *rest = reduced
    if getattr(function, "__name__", "") == "__newobj__" and arguments == (wrapped,):
        # The pickler insists that __newobj__ is given the object's own class; this one makes the same.
        return (copyreg._reconstructor, (base, object, None), *rest)  # type: ignore[attr-defined]
    if function is wrapped:
        function = base
    return (function, tuple(base if argument is wrapped else argument for argument in arguments), *rest)


# Both call `base` by name and not by super(): whoever kept the bound method, as torch.compile does, may call it when
# the instance is of its own class again.


def _block_members(base: Any) -> type:
    class Wrapped(base):  # type: ignore[misc]
        @untraced
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = _sites.get(id(self))
            if found is None:
                return base.__call__(self, *args, **kwargs)
            attachment, site, _ = found
            call = attachment.local.call
            if call is None:
                attachment.called_outside(site)
                return base.__call__(self, *args, **kwargs)
            return call.block(site, self, base.__call__, args, kwargs)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_reduce(super().__reduce_ex__(protocol), Wrapped, base)

    return Wrapped


def _transformer_members(base: Any) -> type:
    class Wrapped(base):  # type: ignore[misc]
        @untraced
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            attachment = _attached.get(self)
            if attachment is None:
                return base.__call__(self, *args, **kwargs)
            return attachment.forward(partial(base.__call__, self), args, kwargs, torch.is_grad_enabled())

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_reduce(super().__reduce_ex__(protocol), Wrapped, base)

    if hasattr(base, "cache_context"):

        @contextmanager
        def cache_context(self: Any, name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            """As in the base class, and the name is noted as the branch of the calls within."""
            attachment = _attached.get(self)
            if attachment is None:
                with base.cache_context(self, name, *args, **kwargs):
                    yield
                return
            outer, attachment.local.branch = attachment.local.branch, name
            try:
                with base.cache_context(self, name, *args, **kwargs):
                    yield
            finally:
                attachment.local.branch = outer

        Wrapped.cache_context = cache_context

    if hasattr(base, "_reset_stateful_cache"):
        # diffusers calls it at the end of a pipeline call: the generation is over.
        def _reset_stateful_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
            attachment = _attached.get(self)
            if attachment is not None:
                attachment.generation_over()
            return base._reset_stateful_cache(self, *args, **kwargs)

        Wrapped._reset_stateful_cache = _reset_stateful_cache
    return Wrapped
