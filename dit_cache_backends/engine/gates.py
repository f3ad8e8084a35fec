"""When: at the entry of a span a gate says run or skip."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dit_cache_backends.engine import ranks
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.spans import Span, Streams
from dit_cache_backends.engine.storage import PLAIN, Storage


class Decision(NamedTuple):
    """What a gate answers; true in a condition when the span is to run. (A tuple is made faster than a dataclass.)"""

    run: bool
    reason: str = ""
    """Why, in a few words, for the summary: "warm-up", "difference", ..."""
    difference: float | None = None
    """The number the decision was taken by, where there is one."""
    store: bool = True
    """Whether what the span adds is shown to its predictors. False says that this gate will never skip again: once all
    gates of a transformer have said so, they are neither asked nor told for the rest of the generation."""

    def __bool__(self) -> bool:
        return self.run


class Probe:
    """What a gate may look at when a span is entered. Tensors are the model's own: read them, never write."""

    __slots__ = (
        "_change",
        "_look_ahead",
        "_notes",
        "args",
        "argument",
        "block",
        "entry",
        "exit",
        "kwargs",
        "measured",
        "streams",
    )

    def __init__(
        self,
        entry: Streams,
        streams: Streams,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        look_ahead: "tuple[Callable[..., Iterator[Ahead]], tuple[Any, ...]] | None" = None,
        argument: Callable[[str], Any] = lambda name: None,
        measured: float | None = None,
    ) -> None:
        self.entry = entry
        """The streams as they came into the stack, before its first block."""
        self.streams = streams
        """The streams at the entry of the span."""
        self.block = block
        """The first block of the span."""
        self.args = args
        self.kwargs = kwargs
        self.argument = argument
        """An argument of the transformer's own call, by name; None where it was given none of that name."""
        self._notes: dict[str, Any] | None = None
        self.exit: Streams | None = None
        """The streams behind the span; known to ``observe`` when the span has run."""
        self.measured = measured
        """The number that was told ahead for this entry."""
        self._look_ahead = look_ahead
        self._change: Tensor | None = None

    @property
    def notes(self) -> dict[str, Any]:
        """What a gate worked out when it was asked and needs again when it is told; gone with the call."""
        if self._notes is None:
            self._notes = {}
        return self._notes

    def ahead(self) -> "Iterator[Ahead]":
        """The spans that follow without a block between, as they are entered if all before them are skipped.

        For each its gate, its probe, and a function that takes the number measured there: it is the ``measured`` of the
        probe that comes, if the span is entered with just that. Where the model adds something between its blocks it
        is not. Nothing here waits for a device, so that a gate can measure several spans and read the numbers at once;
        drop each probe when it is measured, to hold the streams of one span and not of all. ``block`` and arguments are
        those of the present span. Ends where a span has nothing to be skipped with.
        """
        if self._look_ahead is None:
            return iter(())
        function, arguments = self._look_ahead
        return function(*arguments, self)

    def entered(
        self,
        block: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        look_ahead: "tuple[Callable[..., Iterator[Ahead]], tuple[Any, ...]] | None",
        argument: Callable[[str], Any],
        measured: float | None,
    ) -> "Probe":
        """A probe that was made ahead is the one of the span that is entered now."""
        self.block, self.args, self.kwargs, self.argument = block, args, kwargs, argument
        self._look_ahead, self.measured = look_ahead, measured
        return self

    def decided(self) -> None:
        """There is no looking ahead any more. It and this probe hold each other."""
        self._look_ahead = None

    @property
    def change(self) -> Tensor:
        """What the blocks before the span have added to the main stream, computed once: ``[batch, tokens, dim]``."""
        if self._change is None:
            here, entry = self.streams[0], self.entry[0]
            if here is None or entry is None:
                raise ValueError("The main stream of the stack is None; its card names another stream first.")
            self._change = here - entry
        return self._change


class Ahead(NamedTuple):
    """A span that may be entered soon; see ``Probe.ahead``."""

    gate: "Gate"
    probe: Probe
    foretell: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Which span, of which model, on which branch, a gate is made for."""

    transformer: str
    stack: str
    span: Span
    depth: int
    branch: str
    peers: Mapping[str, "Gate"]
    """The gates of the branches that came to this span before, by branch, in that order."""
    shared: MutableMapping[str, Any]
    """What the gates of this transformer on this branch know together, of every stack; thrown away with them."""
    report: Callable[[str, str], None]
    """Counts an event in the summary: its kind, and what happened."""
    model: Callable[[], nn.Module | None]
    """The transformer, as the model's library made it; None once it is gone."""
    timesteps: Callable[[], Sequence[float] | None]
    """The timesteps of the whole run, by the step's ``run_index``; None where no scheduler tells them."""
    storage: Storage = PLAIN
    """Where a gate keeps what it compares with at later steps."""


class Gate(ABC):
    """Decides for one span on one branch during one generation, and is thrown away with it.

    Asking changes nothing: what a gate has to remember, it notes when it is told.
    """

    @abstractmethod
    def should_run(self, step: Step, probe: Probe) -> Decision:
        """Whether the span is to run at ``step``. Must not change the gate."""

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:  # noqa: B027 (a gate may be stateless)
        """Told once a step what was done in the end: the engine runs where there is nothing to skip with."""


def magnitude(tensor: Tensor, per_sample: bool = False) -> Tensor:
    """``sum|tensor|`` in float32, a scalar on the tensor's device, or one number for each sample ``[batch]``."""
    dims = tuple(range(1, tensor.dim())) if per_sample else None
    found: Tensor = torch.linalg.vector_norm(tensor, 1, dim=dims, dtype=torch.float32)
    return found


def relative_difference(before: Tensor, now: Tensor, per_sample: bool = False) -> Tensor:
    """``sum|before - now| / sum|before|``, a scalar, or one number for each sample ``[batch]``.

    The measure of TeaCache (arXiv 2411.19108, section 3) and DBCache. Sums are taken in float32 whatever the dtype, and
    over the shards of all ranks where the host named their groups (``agree_over``).
    """
    numerator, denominator = magnitude(before - now, per_sample), magnitude(before, per_sample)
    if ranks.is_shared():
        numerator, denominator = ranks.summed_over_ranks(torch.stack((numerator, denominator)))
    ratio: Tensor = numerator / denominator
    return ratio
