"""State: all that one generation remembers, thrown away with it."""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Reading, Step, Tally, Timestep
from dit_cache_backends.engine.gates import Gate
from dit_cache_backends.engine.predictors import Predictor, attributes, kept_in
from dit_cache_backends.engine.spans import Stream, Streams
from dit_cache_backends.engine.storage import PLAIN, Kept, Packed, Storage
from dit_cache_backends.summary import Summary

Signature = tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...]


def signature(streams: Streams) -> Signature:
    """Shape, dtype and device of each stream: what a stored residual must share to be added."""
    return tuple(
        [None if stream is None else (stream.shape, stream.dtype, stream.device) for stream in streams]
    )


class SlotKey(NamedTuple):
    """Names the state of one span on one branch."""

    transformer: str
    span: int
    branch: str
    visit: int
    """How many times the span was entered before in the same forward."""


class Slot:
    """What is remembered of one span on one branch: its gate, its predictors, and what they were fed."""

    __slots__ = (
        "called",
        "dtypes",
        "exit_shape",
        "follows",
        "gate",
        "held",
        "inner",
        "kinds",
        "last_step",
        "predictor",
        "predictors",
        "shapes",
        "signature",
        "storage",
    )

    def __init__(
        self, gate: Gate, predictor: Callable[[Stream], Predictor], storage: Storage = PLAIN
    ) -> None:
        self.gate = gate
        self.predictor = kept_in(storage, predictor)
        """Makes the predictors."""
        self.storage = storage
        self.predictors: tuple[Predictor | None, ...] = ()
        self.kinds: tuple[str, ...] = ()
        self.dtypes: tuple[torch.dtype | None, ...] = ()
        self.signature: Signature | None = None
        self.shapes: object = None
        """Those of all that the transformer was called with when the span last ran, where it is compiled as a whole."""
        self.held: dict[int, tuple[Any, ...]] = {}
        """What each block gave that is no stream, by its number."""
        self.inner: dict[int, Kept] = {}
        """What the span had added to the main stream behind a block whose output is seen outside."""
        self.exit_shape: torch.Size | None = None
        """Of the main stream, where the span ends in another layout than it begins."""
        self.follows: bool | None = None
        """Whether the model hands on to it the very tensor that the span before it gives; None while that is not known.
        Where it does not, nothing can be foretold of it."""
        self.called = 0
        self.last_step = 0

    def forget(self) -> None:
        """Let go of every tensor; nothing can be skipped until the span has run again."""
        self.predictors, self.kinds, self.signature = (), (), None
        self.held, self.inner = {}, {}


class Mark:
    """Where one transformer stands in a generation."""

    __slots__ = ("calls", "first", "first_timestep", "last_timestep", "restarts", "run_index", "tally")

    def __init__(self) -> None:
        self.first: int | None = None
        self.first_timestep: Timestep | None = None
        self.last_timestep: Timestep | None = None
        self.restarts = 0
        self.run_index = -1
        self.calls: dict[str | None, int] = {}
        """How often each branch was called at the present step."""
        self.tally = Tally()


class Session:
    """One generation: the slots of every transformer that takes part, the place in the run, and the summary."""

    def __init__(self, key: Hashable = None, total: int | None = None) -> None:
        self.key = key
        self.total = total
        self.slots: dict[SlotKey, Slot] = {}
        self.shared: dict[tuple[str, str], dict[str, Any]] = {}
        """What the gates of one transformer on one branch know together."""
        self.retired: dict[tuple[str, str], dict[int, str]] = {}
        """Of a transformer on a branch where nothing will be skipped any more: why, by the number of the stack."""
        self.marks: dict[str, Mark] = {}
        self.summary = Summary()
        self.started = False
        self.over = False
        """Its last step has passed and nothing is held: kept for its summary only."""
        self._run: weakref.ReferenceType[object] | None = None

    def slot(self, transformer: str, span: int, branch: str, visit: int) -> Slot | None:
        """The slot of a span, if there is one."""
        # A plain tuple is equal to the named one, and made in a third of the time.
        return self.slots.get((transformer, span, branch, visit))  # type: ignore[call-overload, no-any-return]

    def belongs_to(self, run: object | None) -> bool:
        """Whether this session is the one of the generation ``run`` (a clock's ``run()``)."""
        return run is None or self._run is None or self._run() is run

    def adopt(self, run: object | None) -> None:
        """Note which generation this session belongs to, if that is not known yet."""
        self.started = True
        if run is not None and self._run is None:
            self._run = weakref.ref(run)

    def mark(self, transformer: str) -> Mark:
        """The place of ``transformer``, made when first asked for."""
        mark = self.marks.get(transformer)
        if mark is None:
            mark = self.marks[transformer] = Mark()
        return mark

    def is_behind(self, index: int) -> bool:
        """Whether step ``index`` lies before one this generation has made: then it is another generation's."""
        return any(index < mark.run_index for mark in self.marks.values())

    def place(
        self, transformer: str, reading: Reading, branch: str | None, restarts: Callable[[int, int], bool]
    ) -> Step:
        """Turn a clock's reading into the step of this call, and move the transformer's mark there.

        ``branch`` is the name given by the host; without one the number of the call in its step is the name.
        ``restarts(steps since the last start, restarts so far)`` says whether everything is forgotten at a new step.
        """
        self.over = False
        mark = self.mark(transformer)
        if mark.first is None:
            mark.first = reading.index if reading.first is None else reading.first
        if reading.index != mark.run_index:
            mark.run_index = reading.index
            mark.calls.clear()
            if restarts(reading.index - mark.first, mark.restarts):
                self.drop(transformer)
                mark.first = reading.index
                mark.restarts += 1
        made = mark.calls.get(branch, 0)
        mark.calls[branch] = made + 1
        if branch is None:
            branch = str(made)
        elif made:
            branch = f"{branch}#{made}"
        total = reading.total if reading.count is None else reading.count
        return Step(reading.index - mark.first, total, branch, reading.index, reading.total)

    def peers(self, key: SlotKey) -> dict[str, Gate]:
        """The gates of the same span on the branches that came before."""
        return {
            other.branch: slot.gate
            for other, slot in self.slots.items()
            if (other.transformer, other.span, other.visit) == (key.transformer, key.span, key.visit)
        }

    def drop(self, transformer: str | None = None) -> None:
        """Forget the slots of one transformer, or of all; their tensors go with them."""
        for key in [key for key in self.slots if transformer in (None, key.transformer)]:
            del self.slots[key]
        for name, branch in [pair for pair in self.retired if transformer in (None, pair[0])]:
            del self.retired[name, branch]
        self._forget_shared()
        if transformer is None:
            self.over = True
            self._forget_timesteps(self.marks)

    def retire(self, transformer: str, branch: str, reasons: dict[int, str]) -> None:
        """Nothing will be skipped there any more: let go of what was kept for it. Gates stay, as peers of others."""
        self.retired[transformer, branch] = reasons
        for key, slot in self.slots.items():
            if key.transformer == transformer and key.branch == branch:
                slot.forget()

    def release(self, transformer: str, step: Step) -> None:
        """After a call of the last step: forget this branch, and every slot that was not used in the step before.

        What remains are the branches that may still be called in this step.
        """
        for key, slot in list(self.slots.items()):
            done = key.transformer == transformer and key.branch == step.branch
            if done or slot.last_step < step.run_index - 1:
                del self.slots[key]
        self._forget_shared()
        self.over = not self.slots
        self._forget_timesteps(self.marks if self.over else (transformer,))

    def _forget_shared(self) -> None:
        """What no slot's gate can reach any more."""
        live = {(key.transformer, key.branch) for key in self.slots}
        for key in [key for key in self.shared if key not in live]:
            del self.shared[key]

    def _forget_timesteps(self, transformers: Iterable[str]) -> None:
        for transformer in transformers:
            self.marks[transformer].first_timestep = self.marks[transformer].last_timestep = None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor held in the slots (for measuring memory)."""
        seen: set[int] = set()
        todo: list[object] = [*self.slots.values(), *self.shared.values()]
        while todo:
            thing = todo.pop()
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, Tensor):
                yield thing
            elif isinstance(thing, Packed):
                todo.extend((thing.tensor, thing.scale))
            elif isinstance(thing, dict):
                todo.extend(thing.values())
            elif isinstance(thing, (list, tuple, deque)):
                todo.extend(thing)
            elif isinstance(thing, (Slot, Gate, Predictor)):
                todo.extend(getattr(thing, name) for name in attributes(thing))


class Sessions:
    """The generations under way on one model, by the key of their request, and the summaries of the ended ones."""

    KEPT_SUMMARIES = 64
    _ticks = itertools.count()

    def __init__(self) -> None:
        self.latest = -1
        """Grows with every new generation, so that those of several models can be put in order."""
        self._live: dict[Hashable, Session] = {}
        self._ended: dict[Hashable, Summary] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Session:
        """The session of ``key``, made when first asked for."""
        session = self._live.get(key)
        return self.renew(key) if session is None else session

    def renew(self, key: Hashable, total: int | None = None) -> Session:
        """Throw away what ``key`` remembers and start a fresh session."""
        with self._lock:
            self._close(key)
            # The oldest first: a request of one step is over between the calls of its branches.
            spare = len(self._live) + 1 - self.KEPT_SUMMARIES
            for other in [other for other, session in self._live.items() if session.over][: max(spare, 0)]:
                self._close(other)
            self.latest = next(self._ticks)
            session = self._live[key] = Session(key, total)
            return session

    def drop(self, key: Hashable) -> None:
        """Forget the tensors of ``key``, if there are any; the session goes on."""
        session = self._live.get(key)
        if session is not None:
            session.drop()

    def end(self, key: Hashable) -> None:
        """Drop the session of ``key``; its summary is kept for a while."""
        with self._lock:
            self._close(key)

    def clear(self) -> None:
        """End every session."""
        for key in list(self._live):
            self.end(key)

    def live(self) -> list[Session]:
        """The sessions under way."""
        return list(self._live.values())

    def summary(self, key: Hashable) -> Summary | None:
        """The summary of the generation of ``key``, running or ended; None if there was none."""
        session = self._live.get(key)
        if session is not None and session.started:
            return session.summary
        return self._ended.get(key)

    def _close(self, key: Hashable) -> None:
        session = self._live.pop(key, None)
        if session is None:
            return
        session.drop()
        if session.started:
            self._ended.pop(key, None)
            self._ended[key] = session.summary
            while len(self._ended) > self.KEPT_SUMMARIES:
                del self._ended[next(iter(self._ended))]
