"""What one forward has seen of its spans and stacks."""

from typing import Any

from torch import Tensor

from dit_cache_backends.engine.foretold import Horizon
from dit_cache_backends.engine.gates import Decision, Probe
from dit_cache_backends.engine.passing import Passed
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.sessions import Slot
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.models.card import Fit
from dit_cache_backends.summary import Row


class Visit:
    """A span that was entered in this forward. Once it is left it holds no tensor any more."""

    __slots__ = (
        "called",
        "copies",
        "decision",
        "entered",
        "left",
        "probe",
        "result",
        "slot",
        "streams",
        "versions",
    )

    def __init__(self, entered: Site, slot: Slot, probe: Probe, decision: Decision) -> None:
        self.entered = entered
        self.slot = slot
        self.probe: Probe | None = probe
        """None once it was left."""
        self.streams = probe.streams
        """Those that came in."""
        self.decision = decision
        self.result: Streams | None = None
        """What the span hands out where it is skipped, made at its entry; None where it runs, or was left."""
        self.called = 0
        """The blocks that the model called, a bit each."""
        self.left = False
        self.versions: tuple[int, ...] = ()
        self.copies: Streams = ()

    @property
    def skipped(self) -> bool:
        """Whether its blocks do not run."""
        return not self.decision.run

    def leave(self) -> Streams:
        """The span was left; what it hands out if it was skipped."""
        result = self.result or ()
        self.left = True
        # A forward would else hold the streams of every span to its end: with a span a block, as much as training.
        self.probe = self.result = None
        self.streams = self.copies = ()
        return result

    def watch(self) -> None:
        """From now on it can be told whether the blocks write into the streams that came in."""
        if self.entered.writes_known:
            return
        streams = self.streams
        # Tensors made in inference mode keep no version counter: then compare what was in them, once.
        if any(stream is not None and stream.is_inference() for stream in streams):
            self.copies = tuple([None if stream is None else stream.clone() for stream in streams])
        else:
            self.versions = versions(streams)

    def note(self, site: Site, out: Any) -> None:
        """Keep what a block of the running span gave that is needed of it alone when the span is skipped."""
        if None in site.order:
            self.slot.held[site.index] = copied(site.held(out))
        if site.shown:
            main, entered = site.streams_from(out, self.streams)[0], self.streams[0]
            if main is not None and entered is not None:
                self.slot.inner[site.index] = self.slot.storage.keep(main - entered)

    def inside(self, site: Site, streams: Streams) -> Streams:
        """What a block within the skipped span gives, where it is seen outside: as much further as when it ran."""
        entered, further = self.streams[0], self.slot.inner.get(site.index)
        if entered is None or further is None:
            return streams
        return (entered + self.slot.storage.give(further), *streams[1:])


class StackState:
    """What one forward has seen of one stack."""

    __slots__ = (
        "_last",
        "entry",
        "entry_layout",
        "horizon",
        "passed",
        "passes",
        "row",
        "visits",
    )

    def __init__(self, plan: StackPlan, row: Row) -> None:
        self.entry: Streams | None = None
        self.entry_layout = 0
        self.passes = 0
        self.passed: Passed | None = None
        """The block that ran last, as long as what the card says is compared with what the model does."""
        self.visits: list[Visit | None] = [None] * len(plan.spans)
        self.row = row
        self.horizon = Horizon()
        self._last: tuple[int, Tensor | None] | None = None
        """The span that ran and was left last, and the main stream behind it."""

    def note(self, decision: Decision) -> None:
        """Put a decision into the summary's row."""
        row, reason = self.row, decision.reason
        if decision.difference is not None:
            row.differences.append(decision.difference)
        if reason != row.reason and reason not in ("", *row.reason.split(", ")):
            row.reason = f"{row.reason}, {reason}" if row.reason else reason

    def hands_on(self, number: int, streams: Streams) -> bool | None:
        """Whether the main stream at span ``number`` is what the span before it gave; None where none ran before."""
        last = self._last
        return None if last is None or last[0] != number - 1 else last[1] is streams[0]

    def ran(self, number: int, after: Streams) -> None:
        """A span that ran was left with these streams."""
        self._last = (number, after[0])


def fitted(fit: Fit, streams: Streams, like: Streams) -> Streams:
    """``streams`` with the main one in the layout that it has in ``like``."""
    main, other = streams[0], like[0]
    return streams if main is None or other is None else (fit(main, other.shape), *streams[1:])


def copied(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors among ``items``: the model may write into what its blocks gave it."""
    return tuple([item.clone() if isinstance(item, Tensor) else item for item in items])


def versions(streams: Streams) -> tuple[int, ...]:
    """How often each stream was written into; -1 where that is not counted."""
    return tuple([-1 if stream is None or stream.is_inference() else stream._version for stream in streams])
