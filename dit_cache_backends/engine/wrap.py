"""Attaching to a transformer: its class and its blocks' classes get one subclass each, taken back by ``detach``.

The subclass wraps the instance's ``__call__``, so that compiled, hooked, offloaded and LoRA-carrying forwards lie
inside.
There is one subclass per class, never one per instance: torch.compile guards on the type, and would compile every block
anew. Only where the transformer is compiled as a whole has each block its own, as its place is a constant of the graph.
What an instance belongs to stands in a map beside it, so that copies and pickles of it are plain.
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

from dit_cache_backends.engine import compiled
from dit_cache_backends.engine.attachment import Attachment
from dit_cache_backends.engine.compiled_blocks import traced_call
from dit_cache_backends.engine.graphs import Graphs
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.through import now
from dit_cache_backends.engine.untraced import untraced, untraced_module
from dit_cache_backends.errors import AlreadyEnabledError
from dit_cache_backends.models import uncompiled

_sites: "dict[int, tuple[Attachment, Site, weakref.ref[nn.Module]]]" = {}
"""By the id of the block: a weak map costs four times as much to look into, at every call of every block."""
_attached: "weakref.WeakKeyDictionary[nn.Module, Attachment]" = weakref.WeakKeyDictionary()
_block_classes: "weakref.WeakKeyDictionary[type, type]" = weakref.WeakKeyDictionary()
_transformer_classes: "weakref.WeakKeyDictionary[type, type]" = weakref.WeakKeyDictionary()
_traced_classes: "weakref.WeakSet[type]" = weakref.WeakSet()
"""Those of blocks that torch.compile traces: one of each block, as a site is a constant of its graph."""
_lock = threading.RLock()

_UNTRACED = (
    "ahead attachment call clock compiled compiled_call compiled_stacks foretold gates graphs host "
    "offload passing plan predictors ranks residuals retired sessions storage survey through visit"
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
        attachment.inner.clear()
        for block, site in attachment.sites():
            _place(block, attachment, site)
            if site.through:
                attachment.pass_through(block, site)
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
        attachment.compiled.traced = None
        _restore(transformer, _transformer_classes)
        for key, (owner, site, reference) in list(_sites.items()):
            if owner is attachment:
                del _sites[key]
                block = reference()
                if block is not None:
                    _restore(block, _block_classes)
                    taken.append((block, site))
    return taken


def _blocks_of(attachment: Attachment) -> list[tuple[nn.Module, Site]]:
    found = [(reference(), site) for owner, site, reference in list(_sites.values()) if owner is attachment]
    return [(block, site) for block, site in found if block is not None]


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
    if any(known.get(parent) is cls or cls in _traced_classes for cls, parent in pairwise(base.__mro__)):
        return  # Another swap was put on top of ours before, so that it could not be taken back: it is live again.
    cls = known.get(base)
    if cls is None:
        cls = known[base] = members(base)
        _named_as(cls, base)
    _swap(module, cls)


def _named_as(cls: type, base: type) -> None:
    cls.__name__, cls.__qualname__, cls.__module__ = base.__name__, base.__qualname__, base.__module__
    cls.__doc__ = base.__doc__


def _restore(module: nn.Module, known: "weakref.WeakKeyDictionary[type, type]") -> None:
    cls, base, *_ = type(module).__mro__
    if known.get(base) is cls or cls in _traced_classes:
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


@untraced
def _call_block(block: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of a block; ``run`` is its class's own ``__call__``."""
    through = now.left.pop(id(block), None)
    if through is not None:
        return through.hand_on(args, kwargs)
    found = _sites.get(id(block))
    if found is None:
        return run(block, *args, **kwargs)
    attachment, site, _ = found
    call = attachment.local.call
    if call is None:
        attachment.called_outside(site)
        return run(block, *args, **kwargs)
    return call.block(site, block, run, args, kwargs)


def _block_members(base: Any) -> type:
    class Wrapped(base):  # type: ignore[misc]
        @untraced
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            through = now.left.pop(id(self), None)
            if through is not None:
                return through.hand_on(args, kwargs)
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


def _trace(attachment: Attachment, graphs: Graphs) -> str:
    """Have every block of ``attachment`` called in the way that torch.compile can trace, by a class of its own.

    Returns:
        Why it could not be done; then nothing was. Empty where it was.
    """
    with _lock:
        swaps: list[tuple[nn.Module, type]] = []
        for block, site in _blocks_of(attachment):
            place, cls = (site.plan.number, site.index), type(block)
            base = cls.__mro__[1]
            if not _is_ours(cls, base):
                return f"the class of a {cls.__name__} was changed again after the backend was enabled"
            found = graphs.classes.get(place)
            if found is None or found.__mro__[1] is not base:
                found = graphs.classes[place] = _traced_members(base, graphs, site)
            swaps.append((block, found))
        for block, cls in swaps:
            _swap(block, cls)
    return ""


def _is_ours(cls: type, base: type) -> bool:
    return _block_classes.get(base) is cls or cls in _traced_classes


def _traced_members(base: Any, graphs: Graphs, site: Site) -> type:
    run = base.__call__

    class Wrapped(base):  # type: ignore[misc]
        __call__ = traced_call(graphs.scope, site, run, _call_block)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _plain_reduce(super().__reduce_ex__(protocol), Wrapped, base)

    _named_as(Wrapped, base)
    _traced_classes.add(Wrapped)
    return Wrapped


def _transformer_members(base: Any) -> type:
    class Wrapped(base):  # type: ignore[misc]
        @untraced
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            attachment = _attached.get(self)
            if attachment is None:
                return base.__call__(self, *args, **kwargs)
            run, grad = partial(base.__call__, self), torch.is_grad_enabled()
            if compiled.is_compiled(self):
                blocks, trace = partial(_blocks_of, attachment), partial(_trace, attachment)
                return compiled.forward(attachment, self, run, args, kwargs, grad, blocks, trace)
            return attachment.forward(run, args, kwargs, grad)

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
