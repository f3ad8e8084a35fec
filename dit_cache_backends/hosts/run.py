"""One call of a pipeline for one request, or for a batch of them, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from dit_cache_backends.engine.clock import Tally, Timestep
from dit_cache_backends.hosts.batching import joined
from dit_cache_backends.hosts.caches import Caches, Served
from dit_cache_backends.hosts.calls import pictures_of, steps_of, transformers_in
from dit_cache_backends.hosts.copies import Front, own_copy
from dit_cache_backends.hosts.generation import Generation, StepEvent
from dit_cache_backends.hosts.requests import OmniRequestOutput
from dit_cache_backends.hosts.timing import Stopwatch, transformer_seconds
from dit_cache_backends.hosts.turns import Stopped, Ticket, Turns
from dit_cache_backends.pipelines import SchedulerClock
from dit_cache_backends.summary import Row, Summary

__all__ = ["Request", "Run", "Shared"]


@dataclass
class Request:
    """What was handed in: how the pipeline is to be called, and who waits for it."""

    generation: Generation
    arguments: dict[str, Any]
    served: Served | None
    surroundings: Callable[[], AbstractContextManager[object]]
    progress_bar: bool = False
    alone: bool = False
    """Not to be batched: it was in a batch that failed."""
    run: Run | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        generator = self.arguments.get("generator")
        self._numbers = generator.get_state() if isinstance(generator, torch.Generator) else None

    def again_alone(self) -> None:
        """Begin anew by itself, with the same numbers."""
        self.alone = True
        if self._numbers is not None:
            self.arguments["generator"].set_state(self._numbers)


@dataclass(frozen=True)
class Shared:
    """What all runs on one pipeline share."""

    pipeline: Any
    front: Front
    caches: Caches
    turns: Turns
    agree: Callable[[bool], bool] | None = None
    """Where several ranks run the same requests: whether one of them wants what this one is asked for."""


class Run:
    """Calls the pipeline for ``requests``, which share their settings."""

    def __init__(self, requests: Sequence[Request], shared: Shared) -> None:
        self.requests = list(requests)
        self.ticket = Ticket()
        self.thread: threading.Thread | None = None
        self.gone = threading.Event()
        """Set when nothing of it is left."""
        self.holds_session = False
        self._shared = shared
        self._to_stop = False
        self._served = requests[0].served
        self._key = requests[0].generation.request_id
        self._arguments: dict[str, Any] = {}
        self._clock: SchedulerClock | None = None
        self._watch = Stopwatch()
        self._calls = 0
        self._steps = 0
        self._since = 0.0
        self._spent = 0.0
        self._summary: Summary | None = None
        self._rows = 0

    def execute(self) -> list[OmniRequestOutput]:
        """Call the pipeline, a step at each turn.

        Raises:
            Stopped: It was stopped.
        """
        served, shared, first = self._served, self._shared, self.requests[0]
        with first.surroundings(), nullcontext() if served is None else served.session(self._key):
            shared.turns.enter(self.ticket)
            self.holds_session = served is not None
            shared.caches.attach(served)
            shared.caches.refuse_others()
            self._arguments = joined([request.arguments for request in self.requests])
            pipeline = own_copy(shared.pipeline, self._boundary, first.progress_bar)
            self._clock = SchedulerClock(pipeline)
            shared.front.show(pipeline)
            # Ranks stop together, so only between two steps.
            check = self.ticket.check if shared.agree is None else None
            try:
                if served is not None:
                    served.backend.refresh(shared.front, steps_of(pipeline, self._arguments))
                with transformer_seconds(transformers_in(pipeline), check) as self._watch:
                    began = self._since = time.perf_counter()
                    result = pipeline(**self._arguments)
                    ended = time.perf_counter()
            finally:
                shared.front.show(None)
            timings = {"total": ended - began, "in_turn": self._spent + ended - self._since}
            if self._watch.calls:
                timings["transformer"] = self._watch.seconds
            return self._outputs(result, timings)

    def free(self) -> None:
        """Let go of everything that the call held."""
        if self._served is not None:
            self._served.end_session(self._key)
        self.holds_session = False
        self._arguments.clear()

    def stop(self) -> bool:
        """Stop it: at once while it waits for its turn, else before its next step.

        Returns:
            Whether it waited, so that it ends now.
        """
        if self._shared.agree is not None:
            self._to_stop = True
            return False
        return self._shared.turns.stop(self.ticket)

    def _boundary(self) -> None:
        """Called behind every step of the scheduler: the others have their turn."""
        if self._watch.calls == self._calls and self._calls:
            return  # A second scheduler of the same step.
        self._calls = self._watch.calls
        spent = time.perf_counter() - self._since
        self._spent += spent
        event = self._event(spent)
        self._steps += 1
        for request in self.requests:
            if not request.cancelled:
                request.generation.step_done(event)
        if self._shared.agree is not None:
            if self._shared.agree(self._to_stop):
                raise Stopped
        elif self._served is None or self._served.interleaves:
            self._shared.turns.pass_on(self.ticket)
            self._shared.caches.attach(self._served)
        else:
            self.ticket.check()
        self._since = time.perf_counter()

    def _event(self, seconds: float) -> StepEvent:
        reading = None if self._clock is None else self._clock.read("transformer", Tally(), Timestep(None))
        total = None if reading is None else reading.total
        rows = []
        if self._served is not None:
            summary = self._served.backend.summary(self._key)
            if summary is not self._summary:
                self._summary, self._rows = summary, 0
            rows = summary.rows[self._rows :]
            self._rows += len(rows)
        return StepEvent(
            self._steps,
            total,
            sum(row.blocks_run for row in rows),
            sum(row.blocks_skipped for row in rows),
            ", ".join(dict.fromkeys(row.reason for row in rows if row.reason)),
            seconds,
            _skipped(rows),
        )

    def _outputs(self, result: Any, timings: dict[str, float]) -> list[OmniRequestOutput]:
        pictures, kind = pictures_of(result)
        summary = None if self._served is None else self._served.backend.summary(self._key)
        several = len(self.requests)
        if several > 1 and len(pictures) != several:
            raise RuntimeError(
                f"the pipeline gave {len(pictures)} pictures for {several} prompts in one call, so whose they are is "
                "not known"
            )
        return [
            OmniRequestOutput(
                request_id=request.generation.request_id,
                prompt=request.generation.prompt,
                images=pictures if several == 1 else [pictures[number]],
                final_output_type=kind,
                timings=dict(timings),
                cache_summary=summary,
            )
            for number, request in enumerate(self.requests)
        ]


def _skipped(rows: Sequence[Row]) -> tuple[int, ...]:
    """The skipped blocks of several rows, counted through all of them."""
    found: list[int] = []
    before = 0
    for row in rows:
        found += [before + number for number in row.skipped]
        before += row.blocks_run + row.blocks_skipped
    return tuple(found)
