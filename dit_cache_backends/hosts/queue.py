"""The requests of an engine: those that wait, those that run, and what became of the others."""

from __future__ import annotations

import threading
import traceback
from collections import Counter, deque
from collections.abc import Sequence

from dit_cache_backends.errors import ConfigError, EngineClosedError, QueueFullError
from dit_cache_backends.hosts.batching import fit_together
from dit_cache_backends.hosts.generation import Generation, State
from dit_cache_backends.hosts.requests import OmniRequestOutput
from dit_cache_backends.hosts.run import Request, Run, Shared
from dit_cache_backends.hosts.turns import Stopped

__all__ = ["Queue"]


class Queue:
    """Starts runs in the order in which requests came, as many at once as may be, and ends them.

    Args:
        shared: What the runs share.
        max_concurrent: Runs that take turns.
        max_waiting: Requests that may wait.
        max_batch: Requests in one run.
    """

    def __init__(self, shared: Shared, max_concurrent: int, max_waiting: int, max_batch: int) -> None:
        self._shared = shared
        self._max_concurrent, self._max_waiting, self._max_batch = max_concurrent, max_waiting, max_batch
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Request] = deque()
        self._runs: list[Run] = []
        self._threads: list[threading.Thread] = []
        self._live: dict[str, Request] = {}
        self._counts: Counter[State] = Counter()
        self._closed = False

    def refuse(self, request_id: str | None) -> None:
        """Raise why a request cannot be taken now.

        Raises:
            ConfigError: One of that name is under way.
            QueueFullError: As many wait as may.
            EngineClosedError: Nothing is taken any more.
        """
        with self._changed:
            if self._closed:
                raise EngineClosedError("The engine is closed and takes no more requests. Make another one.")
            if request_id in self._live:
                raise ConfigError(
                    f"A request named {request_id!r} is under way. Give another request_id, or none: then one is made."
                )
            if len(self._runs) >= self._max_concurrent and len(self._waiting) >= self._max_waiting:
                raise QueueFullError(
                    f"{len(self._runs)} runs are under way and {len(self._waiting)} requests wait, as many as may "
                    f"(max_waiting={self._max_waiting}). Try again when one is done."
                )

    def put(self, request: Request) -> None:
        """Take a request; it starts at once where there is room.

        Raises:
            DitCacheError: As :meth:`refuse`.
        """
        with self._changed:
            self.refuse(request.generation.request_id)
            self._refuse_shared_generator(request)
            self._live[request.generation.request_id] = request
            self._waiting.append(request)
            self._admit()

    def cancel(self, generation: Generation) -> bool:
        """Stop a request; False if it had ended before."""
        with self._changed:
            request = self._live.get(generation.request_id)
            if request is None or request.generation is not generation or request.cancelled:
                return False
            request.cancelled = True
            self._counts["cancelled"] += 1
            run = request.run
            if run is None:
                self._waiting.remove(request)
                self._forget(request)
                self._changed.notify_all()
        if run is not None and all(each.cancelled for each in run.requests) and run.stop():
            run.gone.wait()
        generation.ended("cancelled")
        return True

    def close(self, drain: bool, timeout: float | None) -> None:
        """Take nothing more, cancel what is left, and wait until nothing runs."""
        with self._changed:
            if any(run.thread is threading.current_thread() for run in self._runs):
                raise RuntimeError(
                    "An engine cannot be closed by a step listener; close it in another thread."
                )
            self._closed = True
            if drain:
                self._changed.wait_for(lambda: not self._live, timeout)
            left = [request.generation for request in self._live.values()]
        for generation in left:
            generation.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._runs)
            threads, self._threads = self._threads, []
        # The last of them may still be freeing tensors, which the end of the interpreter must not meet.
        for thread in threads:
            thread.join()

    def counts(self) -> dict[str, int]:
        """How many requests wait and run, how many came to which end, and how many cache states are held."""
        with self._changed:
            return {
                "waiting": len(self._waiting),
                "running": sum(not request.cancelled for run in self._runs for request in run.requests),
                "finished": self._counts["done"],
                "cancelled": self._counts["cancelled"],
                "failed": self._counts["failed"],
                "sessions": sum(run.holds_session for run in self._runs),
            }

    def _refuse_shared_generator(self, request: Request) -> None:
        mine = {id(each) for each in _listed(request.arguments.get("generator"))}
        for other in self._live.values():
            if mine & {id(each) for each in _listed(other.arguments.get("generator"))}:
                raise ConfigError(
                    f"The generator is used by the request {other.generation.request_id!r}, which is under way; with "
                    "two drawing from it neither would get its own numbers. Give each request its own, or a seed."
                )

    def _admit(self) -> None:
        while self._waiting and len(self._runs) < self._max_concurrent:
            group = [self._waiting.popleft()]
            for other in list(self._waiting):
                if len(group) < self._max_batch and _go_together(group[0], other):
                    self._waiting.remove(other)
                    group.append(other)
            run = Run(group, self._shared)
            run.thread = threading.Thread(target=self._work, args=(run,), name="dit-cache run", daemon=True)
            for request in group:
                request.run = run
                request.generation.started()
            self._runs.append(run)
            self._threads = [*(thread for thread in self._threads if thread.is_alive()), run.thread]
            run.thread.start()

    def _work(self, run: Run) -> None:
        outputs: Sequence[OmniRequestOutput] = ()
        error: BaseException | None = None
        try:
            outputs = run.execute()
        except Stopped:
            pass
        except BaseException as raised:
            error = raised
            _let_go(raised)
        run.free()
        if self._shared.turns.holds(run.ticket):
            self._shared.caches.rest()
        self._shared.turns.leave(run.ticket)
        self._ended(run, outputs, error)

    def _ended(self, run: Run, outputs: Sequence[OmniRequestOutput], error: BaseException | None) -> None:
        state: State = "done" if outputs else "cancelled" if error is None else "failed"
        told = []
        with self._changed:
            self._runs.remove(run)
            again = error is not None and len(run.requests) > 1 and not self._closed
            for number, request in reversed(list(enumerate(run.requests))):
                request.run = None
                if request.cancelled:
                    self._forget(request)
                elif again:
                    # Whoever was to blame fails alone, the others do not.
                    request.again_alone()
                    self._waiting.appendleft(request)
                else:
                    told.append((request.generation, outputs[number] if outputs else None))
                    self._counts[state] += 1
                    self._forget(request)
            self._admit()
            self._changed.notify_all()
        run.gone.set()
        for generation, output in reversed(told):
            generation.ended(state, output, error)

    def _forget(self, request: Request) -> None:
        del self._live[request.generation.request_id]
        self._shared.caches.give_back(request.served)
        request.arguments = {}


def _go_together(one: Request, other: Request) -> bool:
    return (
        one.served is other.served
        and (one.served is None or one.served.interleaves)
        and not (one.alone or other.alone)
        and one.progress_bar == other.progress_bar
        and fit_together(one.arguments, other.arguments)
    )


def _listed(generator: object) -> Sequence[object]:
    if generator is None:
        return ()
    return generator if isinstance(generator, (list, tuple)) else (generator,)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that an error holds: where it happened stays, the tensors of the run do not."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        for frame, _line in traceback.walk_tb(error.__traceback__):
            # Up to Python 3.12 a frame whose code asked for locals() keeps that mapping; this brings it up to date.
            _ = frame.f_locals
        error = error.__cause__ or error.__context__
