"""The call of a block that torch.compile traces, where a transformer is compiled as a whole.

What changes from step to step must not be seen by the tracer: a number would be frozen into the graph, and every other
number would cost another one. So the code here reads a word that names the way (``Track.mode``), and tensors; what was
decided, and by which numbers, stays outside (``compiled_call.py``). One graph is one way through all blocks:

* ``dense``: every block runs.
* ``probe``: the span is skipped, and hands out what was predicted. It gives out what the gate looks at, so it serves
  where the span may have to run, too.
* ``skip``: the span is known to be skipped, and so is every other. Nothing is given out that only its running would
  need, so the compiler leaves out what nobody reads: of FLUX's first block the text half of its last projections.
* ``run``: what the blocks before the span gave in ``probe`` is handed out; the span and what follows run.
* ``replay``: an earlier graph of this forward went through the stack; its last block hands out what it gave then.
* ``plain``: as if no backend were enabled.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.untraced import skip_frames


class Track:
    """What the traced blocks of one stack read (the first four), and what they write for the engine to read."""

    def __init__(self) -> None:
        self.mode = ""
        """Empty outside a graph: then a block's call goes the engine's ordinary way."""
        self.mine: Callable[[], bool] = bool
        """Whether the thread at hand is the one that the mode is for. Asked only where nothing is traced."""
        self.clones = False
        """Somebody writes into the streams later on, so what is given out is a copy."""
        self.followed = True
        """The model calls another stack behind it, so that what it gives may be wanted again."""
        self.kinds: tuple[str, ...] = ()
        """What the skipped span does to each stream, as in ``residuals``; ``output`` where that itself is predicted."""
        self.values: tuple[Any, ...] = ()
        """What was predicted, for each stream; None where nothing is."""
        self.dtypes: tuple[Any, ...] = ()
        self.front: dict[int, Any] = {}
        """What each block before the span gave."""
        self.out: Any = None
        """What the last block of the stack gave, where it is followed."""
        self.begin()

    def begin(self) -> None:
        """Before each graph. ``front`` and ``out`` go from one graph of a forward to the next."""
        self.called = 0
        """The blocks that were called, a bit each."""
        self.twice = False
        self.entry: tuple[Any, ...] | None = None
        """The streams as they came into the stack."""
        self.entered: tuple[Any, ...] | None = None
        """The streams at the entry of the span, and the arguments of its first block."""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.forms: tuple[Any, ...] | None = None
        """In place of the streams at the entry of a span that is known to be skipped: what shape and type they have."""
        self.result: tuple[Any, ...] | None = None
        """What the span hands out, from its entry to its exit."""
        self.exit: tuple[Any, ...] | None = None

    def end(self) -> None:
        """After each graph: the engine's ordinary way again, and what only the graph needed is let go of."""
        self.mode, self.values = "", ()

    def clear(self) -> None:
        """After a forward: hold nothing."""
        self.end()
        self.front, self.out = {}, None
        self.begin()


Place = tuple[Any, ...]
"""What is fixed of a block, in one tuple: the tracer checks each thing it reads before every call, a tuple as one."""


def place_of(site: Site) -> Place:
    """The place of the block at ``site``, as ``_block`` reads it."""
    plan, index = site.plan, site.index
    span = plan.spans[0] if plan.spans else None
    front = span is not None and index < span.start
    inside = span is not None and span.start <= index < span.stop
    ends = (index == 0, index == plan.depth - 1, inside and site.enters, inside and site.exits)
    return (plan.number, index, site.bit, front, inside, *ends, site.slots, site.order, site.hands, site.bare)


def scope(tracks: dict[int, Track]) -> dict[str, Any]:
    """The globals of the traced functions of one model: what they read is then looked up, and checked, in one place."""
    found = {**globals(), "tracks": tracks}
    # By this name torch.compile would take this module's own for them, where it begins with another function.
    del found["__name__"]
    return found


def traced_call(scope: dict[str, Any], site: Site, run: Any, aside: Any) -> Callable[..., Any]:
    """The ``__call__`` of the block at ``site``.

    Args:
        scope: the globals of the traced functions of its model.
        site: the place of the block.
        run: the ``__call__`` of its own class.
        aside: the engine's ordinary way, for calls outside a graph.
    """
    made = _make(place_of(site), run, aside)
    return FunctionType(made.__code__, scope, made.__name__, None, made.__closure__)


def way(model: Any, *args: Any, **kwargs: Any) -> Any:
    """One way through ``model``. Each has a copy of this code, and so graphs and a recompile limit of its own."""
    return model.forward(*args, **kwargs)


tracks: dict[int, Track] = {}
"""By the number of the stack; of each model in the scope of its functions."""


def _make(place: Place, run: Any, aside: Any) -> Any:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        stack, index, bit, front, inside, first, last, enters, exits, slots, order, hands, bare = place
        track = tracks[stack]
        mode = track.mode
        if mode == "" or not (is_compiling() or track.mine()):
            return aside(self, run, args, kwargs)
        if mode == "plain":
            return run(self, *args, **kwargs)
        if (first or exits) and track.called & bit:
            track.twice = True
        track.called = track.called | bit
        if mode == "replay":
            return track.out if last else handed_on(hands, bare, args, kwargs)
        if track.entry is None and mode != "skip":
            track.entry = kept(track, read(slots, args, kwargs))
        if front and mode == "run":
            return track.front[index]
        if enters:
            streams = read(slots, args, kwargs)
            if mode == "skip":
                track.forms = forms(streams)
            else:
                track.entered = kept(track, streams)
                track.args, track.kwargs = args, kwargs
            if mode in ("probe", "skip"):
                track.result = predicted(track, streams)
        if inside and track.result is not None:
            if not exits:
                return handed_on(hands, bare, args, kwargs)
            out = given(order, bare, track.result)
            track.result = None  # Else the graph would have to give it out.
            if last and track.followed and mode != "skip":
                track.out = owned(track, out)
            return out
        out = run(self, *args, **kwargs)
        if front and mode == "probe":
            track.front[index] = owned(track, out)
        if exits and track.entered is not None:
            track.exit = kept(track, left(order, bare, out, track.entered))
        if last and track.followed and mode != "skip":
            track.out = owned(track, out)
        return out

    return skip_frames(__call__)


def read(
    slots: tuple[tuple[int, str], ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The arguments of those positions and names."""
    return tuple([args[position] if position < len(args) else kwargs.get(name) for position, name in slots])


def forms(streams: tuple[Any, ...]) -> tuple[Any, ...]:
    """For each stream an empty tensor of its type, and of its shape behind a 0: no number that a graph could freeze.

    Made without the stream, as a compiler may else take it to be needed.
    """
    return tuple([None if stream is None else _form(stream) for stream in streams])


def _form(stream: Tensor) -> Tensor:
    return torch.empty((0, *stream.shape), dtype=stream.dtype, device=stream.device)


def handed_on(
    hands: tuple[tuple[int, str], ...], bare: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The streams that came in, in the form in which the block returns them."""
    items = read(hands, args, kwargs)
    return items[0] if bare else items


def given(order: tuple[Any, ...], bare: bool, streams: Any) -> Any:
    """Streams in the form in which a block of that order returns them."""
    return streams[order[0] or 0] if bare else tuple([streams[number] for number in order])


def left(order: tuple[int | None, ...], bare: bool, out: Any, before: tuple[Any, ...]) -> tuple[Any, ...]:
    """The streams behind a block that returned ``out``."""
    after = list(before)
    if bare:
        after[order[0] or 0] = out
    else:
        for number, item in zip(order, out, strict=True):
            if number is not None:
                after[number] = item
    return tuple(after)


def kept(track: Track, streams: tuple[Any, ...]) -> tuple[Any, ...]:
    """The streams as they are now."""
    if not track.clones:
        return streams
    return tuple([None if stream is None else stream.clone() for stream in streams])


def owned(track: Track, out: Any) -> Any:
    """What a block gave, as it is now."""
    if not track.clones:
        return out
    return out.clone() if isinstance(out, Tensor) else kept(track, tuple(out))


def predicted(track: Track, streams: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the span hands out: ``residuals.predicted``, as it can be traced."""
    result: list[Tensor | None] = []
    for stream, kind, value, dtype in zip(streams, track.kinds, track.values, track.dtypes, strict=True):
        if stream is None or kind == "absent":
            result.append(None)
        elif kind == "same":
            result.append(stream)
        elif kind == "output":
            result.append(value.clone())
        else:
            total = stream + value
            result.append(total if total.dtype == dtype else total.to(dtype))
    return tuple(result)


for _function in (read, forms, _form, handed_on, given, left, kept, owned, predicted):
    skip_frames(_function)
