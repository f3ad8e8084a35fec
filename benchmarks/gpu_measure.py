"""The runs of ``gpu.py``: how long they take, what they hold, and what they wait for."""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_models import Case
from gpu_rows import DRIVERS, Plain, Row
from torch import Tensor

Within = Callable[[], AbstractContextManager[Any]]


@dataclass
class Outcome:
    """What the runs of a row have shown. Seconds and bytes."""

    row: Row
    seconds: list[float] = field(default_factory=list)
    """Of the rounds."""
    first_seconds: float | None = None
    """Of the run before them, in which synchronisations are counted, and which compiles."""
    working: int | None = None
    """The most that a run held at once beyond the weights."""
    held: int | None = None
    """What was still held behind a run."""
    waits: list[int] = field(default_factory=list)
    """Host synchronisations of each call of the transformer, in the first run."""
    skipped: list[Sequence[int]] = field(default_factory=list)
    """The blocks that each call of the last run skipped."""
    graphs: int | None = None
    """Compiled in the first run."""
    graphs_later: int | None = None
    """Compiled in the rounds: recompilations."""
    breaks: int | None = None
    latents: Tensor | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds an image takes: of the first run only where there was no other, and nothing was compiled in it."""
        if self.seconds:
            return statistics.median(self.seconds)
        return None if self.row.compiled or self.error else self.first_seconds


@dataclass
class Costs:
    """What the parts of a dense step take, in seconds."""

    blocks: list[float]
    rest: float
    """Of a call of the transformer, outside its blocks."""
    outside: float
    """Of a step, outside the transformer."""

    def total(self, skipped: Sequence[Sequence[int]], steps: int) -> float:
        """Of a run whose calls skip these blocks, if skipping cost nothing."""
        everything = sum(self.blocks) + self.rest
        return steps * self.outside + sum(everything - sum(self.blocks[i] for i in each) for each in skipped)


class Bench:
    """Makes the runs of one model's rows in turns."""

    def __init__(self, case: Case, model: Any) -> None:
        self.case, self.model = case, model
        self.cuda = case.device.type == "cuda"
        self.costs: Costs | None = None
        self._drivers: dict[str, Plain] = {}

    def first(self, row: Row) -> Outcome:
        """Make the row's model, run it once and count what it waits for; the dense one's parts are timed, too."""
        outcome = Outcome(row)
        with self._failures(outcome):
            graphs, breaks = compiled()
            driver = self._drivers[row.name] = DRIVERS[row.library](row, self.case, self.model)
            with (waits_on_gpu if self.cuda else waits_on_cpu)(outcome.waits) as call:
                outcome.first_seconds, latents = self._run(driver, outcome, call)
            if not torch.isfinite(latents).all():
                raise ArithmeticError("the latents are not finite")
            outcome.latents = latents.float().cpu()
            now, broken = compiled()
            if row.compiled:
                outcome.graphs, outcome.graphs_later = now - graphs, 0
                # What an earlier row has compiled already is taken from there, breaks and all.
                outcome.breaks = broken - breaks if outcome.graphs else None
            if self.costs is None and not row.library and not row.compiled:
                self.costs = parts_of(self.case, driver.model, row.steps)
        return outcome

    def again(self, outcome: Outcome) -> None:
        """One more run; nothing where the row has failed."""
        driver = self._drivers.get(outcome.row.name)
        if driver is None:
            return
        with self._failures(outcome):
            graphs = compiled()[0]
            outcome.seconds.append(self._run(driver, outcome)[0])
            if outcome.graphs_later is not None:
                outcome.graphs_later += compiled()[0] - graphs

    def allocated(self) -> int:
        """Bytes of tensors on the GPU; 0 without one."""
        return torch.cuda.memory_allocated(self.case.device) if self.cuda else 0

    def _run(self, driver: Plain, outcome: Outcome, call: Within = nullcontext) -> tuple[float, Tensor]:
        """A whole generation: its seconds and its latents. What it held and skipped goes into ``outcome``."""

        @contextmanager
        def around(index: int, steps: int, branch: str) -> Iterator[None]:
            with driver.around(index, steps, branch), call():
                yield

        driver.begin()
        before = self.allocated()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.case.device)
        self._wait()
        began = time.perf_counter()
        latents = self.case.denoise(driver.model, driver.row.steps, around)
        self._wait()
        seconds = time.perf_counter() - began
        if self.cuda:
            outcome.working = torch.cuda.max_memory_allocated(self.case.device) - before
            outcome.held = self.allocated() - before - latents.nbytes
        outcome.skipped = driver.skipped()
        driver.free()
        return seconds, latents

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.case.device)

    @contextmanager
    def _failures(self, outcome: Outcome) -> Iterator[None]:
        """What goes wrong in a row is said in it; the other rows go on."""
        try:
            yield
        except Exception as error:  # whatever another library or the compiler may raise
            missing = isinstance(error, ModuleNotFoundError) and error.name == "cache_dit"
            outcome.error = "cache-dit is not installed" if missing else first_line(error)
            self._drivers.pop(outcome.row.name, None)
            if self.cuda:
                torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def waits_on_gpu(counts: list[int]) -> Iterator[Within]:
    """Count in each call within what torch's own watch calls synchronising: reads of tensors, copies that block.

    It does not see who waits for an event or a stream by himself.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @contextmanager
        def call() -> Iterator[None]:
            before = len(caught)
            yield
            counts.append(sum("synchronizing" in str(each.message) for each in caught[before:]))

        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield call
        finally:
            torch.cuda.set_sync_debug_mode("default")


READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor that wait for its numbers where it lies on a GPU."""


@contextmanager
def waits_on_cpu(counts: list[int]) -> Iterator[Within]:
    """The same where there is no device: the outermost calls of ``READS``, each of which would wait for one."""
    depth, own = 0, {name: vars(Tensor)[name] for name in READS if name in vars(Tensor)}

    def counted(name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if counts and inside and not depth:
                counts[-1] += 1
            depth += 1
            try:
                return read(tensor, *args, **kwargs)
            finally:
                depth -= 1

        return method

    inside = False

    @contextmanager
    def call() -> Iterator[None]:
        nonlocal inside
        counts.append(0)
        inside = True
        yield
        inside = False

    for name, method in {name: counted(name) for name in READS}.items():
        setattr(Tensor, name, method)
    try:
        yield call
    finally:
        for name in READS:
            setattr(Tensor, name, own[name]) if name in own else delattr(Tensor, name)


def compiled() -> tuple[int, int]:
    """Graphs that torch.compile has made so far, and its graph breaks."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # imported by whoever compiles; it takes seconds
    if dynamo is None:
        return 0, 0
    return dynamo.counters["stats"]["unique_graphs"], sum(dynamo.counters["graph_break"].values())


class Marks:
    """Points in time on the device, or on the CPU where there is none."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.points: list[Any] = []

    def mark(self, *_: Any) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.points.append(event)
        else:
            self.points.append(time.perf_counter())

    def between(self) -> list[float]:
        """The seconds from each point to the next."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = zip(self.points, self.points[1:], strict=False)
        return [one.elapsed_time(other) / 1e3 if self.cuda else other - one for one, other in pairs]


def parts_of(case: Case, model: Any, steps: int) -> Costs:
    """Time every block of a dense run, and what is around them."""
    marks = Marks(case.device.type == "cuda")

    @contextmanager
    def around(*_: Any) -> Iterator[None]:
        marks.mark()
        yield
        marks.mark()

    with ExitStack() as hooks:
        for block in case.blocks(model):
            hooks.callback(block.register_forward_pre_hook(marks.mark).remove)
            hooks.callback(block.register_forward_hook(marks.mark).remove)
        marks.mark()
        case.denoise(model, steps, around)
        marks.mark()
    seconds = marks.between()
    # Outside; then in each call before the first block, a block, between, a block, ..., behind the last; and outside.
    calls = steps * len(case.branches)
    each = 2 * case.depth + 1
    inside = [seconds[1 + number * (each + 1) :][:each] for number in range(calls)]
    outside = sum(seconds) - sum(map(sum, inside))
    medians = [statistics.median(column) for column in zip(*inside, strict=True)]
    return Costs(medians[1::2], sum(medians[::2]), outside / steps)
