"""One request under way: what an engine hands out for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dit_cache_backends.errors import CancelledGeneration

if TYPE_CHECKING:
    from dit_cache_backends.hosts.requests import OmniRequestOutput

__all__ = ["Generation", "State", "StepEvent"]

State = Literal["waiting", "running", "done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A denoising step that is done."""

    index: int
    """The step of the run, 0-based."""
    total: int | None
    """Steps of the run; None where the scheduler does not tell."""
    blocks_run: int
    """Transformer blocks that ran in this step, over all branches; 0 without a cache, which is what counts them."""
    blocks_skipped: int
    """Transformer blocks that were skipped in this step."""
    reason: str
    """Why the cache decided so ("warm-up", "difference", ...); empty without a cache."""
    seconds: float
    """Time spent on this step, without the time in which other requests had their turn."""
    skipped: tuple[int, ...] = ()
    """Which blocks were skipped, counted through all stacks and branches in the order of the calls."""

    @property
    def cached(self) -> bool:
        """Whether blocks were skipped."""
        return self.blocks_skipped > 0


class Generation:
    """A request that was handed to an :class:`~dit_cache_backends.hosts.engine.Engine`.

    Every method may be called from any thread.
    """

    def __init__(self, request_id: str, prompt: Any, cancel: Callable[[Generation], bool]) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self._cancel = cancel
        self._state: State = "waiting"
        self._changed = threading.Condition()
        self._events: list[StepEvent] = []
        self._listeners: list[Callable[[StepEvent], object]] = []
        self._output: OmniRequestOutput | None = None
        self._error: BaseException | None = None

    @property
    def state(self) -> State:
        """``waiting``, ``running``, ``done``, ``cancelled`` or ``failed``."""
        return self._state

    @property
    def finished(self) -> bool:
        """Whether it is done, cancelled or failed."""
        return self._state not in ("waiting", "running")

    def result(self, timeout: float | None = None) -> OmniRequestOutput:
        """Wait for the end and return what came of it.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            CancelledGeneration: It was cancelled.
            TimeoutError: It has not ended in that time; it goes on.
            Exception: What the pipeline raised.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.finished, timeout):
                raise TimeoutError(
                    f"The request {self.request_id!r} is {self._state} after {timeout} s. Wait longer, or cancel() it."
                )
        if self._error is not None:
            raise self._error
        if self._output is None:
            raise CancelledGeneration(f"The request {self.request_id!r} was cancelled, so it has no result.")
        return self._output

    def cancel(self) -> bool:
        """Stop it: at once while it waits or others have their turn, else before its next transformer call.

        Returns:
            Whether it was stopped by this: False if it had ended before.
        """
        return self._cancel(self)

    def steps(self) -> Iterator[StepEvent]:
        """Every step from the first one on, each as soon as it is done; ends with the request, however that ends."""
        told = 0
        while True:
            with self._changed:
                while told >= len(self._events) and not self.finished:
                    self._changed.wait()
                if told >= len(self._events):
                    return
                event = self._events[told]
            told += 1
            yield event

    def add_step_listener(self, listener: Callable[[StepEvent], object]) -> None:
        """Have ``listener`` called with each step that is done, in the thread that computes.

        May be given before the request starts and while it runs; it is told the steps from then on. It should be
        quick: the next step waits for it. What it raises ends the request as an error of the pipeline would.
        """
        with self._changed:
            self._listeners.append(listener)

    # What follows is for the engine.

    def started(self) -> None:
        """It runs now; its steps, if it ran before in a batch that failed, are counted from the first again."""
        with self._changed:
            self._state = "running"
            self._events.clear()
            self._changed.notify_all()

    def step_done(self, event: StepEvent) -> None:
        """A step has passed."""
        with self._changed:
            self._events.append(event)
            listeners = list(self._listeners)
            self._changed.notify_all()
        for listener in listeners:
            listener(event)

    def ended(
        self, state: State, output: OmniRequestOutput | None = None, error: BaseException | None = None
    ) -> None:
        """It has ended, in one of three ways."""
        with self._changed:
            self._state, self._output, self._error = state, output, error
            self._listeners.clear()
            self._changed.notify_all()
