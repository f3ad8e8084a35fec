"""From requests for pictures to generations in the engine, and back."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_cache_backends.configuration.settings import NOT_SAID
from dit_cache_backends.errors import (
    CancelledGeneration,
    DitCacheError,
    EngineClosedError,
    QueueFullError,
)
from dit_cache_backends.hosts.requests import OmniDiffusionSamplingParams
from dit_cache_backends.serve.failures import Refusal
from dit_cache_backends.serve.metrics import NO_CACHE, Metrics

if TYPE_CHECKING:
    from dit_cache_backends.hosts.engine import Engine, Generation, StepEvent
    from dit_cache_backends.serve.limits import Limits
    from dit_cache_backends.serve.schema import ImageRequest

__all__ = ["Drawing", "Picture", "Service", "Step"]


@dataclass(frozen=True)
class Step:
    """A denoising step of one of a request's pictures."""

    image: int
    event: StepEvent


@dataclass(frozen=True)
class Picture:
    """One of a request's pictures, done."""

    image: int
    b64_json: str
    size: str
    cache: dict[str, Any]
    """What its cache did: ``seed``, ``steps``, ``cached_steps``, ``blocks_run``, ``blocks_skipped``, ``seconds``."""


class Service:
    """The engine as the server sees it: it takes requests until it is told to drain.

    Args:
        engine: What draws.
        limits: The server's bounds.
        room: Requests that the engine takes at once, running and waiting; each has a thread that waits for it.
    """

    def __init__(self, engine: Engine, limits: Limits, room: int) -> None:
        self.engine = engine
        self.limits = limits
        self.metrics = Metrics(engine.stats)
        self.draining = False
        self._own = NO_CACHE if engine.backend is None else engine.backend.name
        self._under_way: set[Drawing] = set()
        self._seconds: deque[float] = deque(maxlen=32)
        # Waiting for a generation blocks a thread; it costs nothing else.
        self._threads = ThreadPoolExecutor(room + 8, "dit-cache-serve")

    async def draw(self, request: ImageRequest) -> Drawing:
        """Hand a request to the engine, a generation for each of its pictures.

        Raises:
            Refusal: The engine does not take it.
        """
        if self.draining:
            raise self.closing()
        loop = asyncio.get_running_loop()
        drawing = Drawing(self, request, loop)
        self._under_way.add(drawing)
        try:
            await loop.run_in_executor(self._threads, drawing.submit)
        except BaseException:
            drawing.cancel()
            raise
        return drawing

    def closing(self) -> Refusal:
        """What is said to a request that comes while the server ends."""
        return Refusal(
            503,
            "the server is shutting down; ask again in a while",
            code="shutting_down",
            headers={"Retry-After": "10"},
        )

    def retry_after(self) -> int:
        """In how many whole seconds a place in the queue may be free: about the time that one picture takes."""
        if not self._seconds:
            return 1
        return min(max(math.ceil(sum(self._seconds) / len(self._seconds)), 1), 300)

    def took(self, seconds: float) -> None:
        """A picture was computed in so many seconds."""
        self._seconds.append(seconds)

    def over(self, drawing: Drawing) -> None:
        """Nothing of ``drawing`` is under way any more."""
        self._under_way.discard(drawing)

    async def drained(self) -> None:
        """Wait for the end of every request under way."""
        while self._under_way:
            await asyncio.sleep(0.02)

    def warm_up(self) -> None:
        """Draw two steps, so that the first request does not pay for what others find ready."""
        params = OmniDiffusionSamplingParams(num_inference_steps=2, seed=0, output_type="pil")
        self.engine.submit("warm-up", params).result()

    def cancel_all(self) -> None:
        """Cancel every request under way; each is told that the server is shutting down."""
        for drawing in list(self._under_way):
            drawing.stop()

    @property
    def own_backend(self) -> str | None:
        """The cache of requests that name none; None for no cache."""
        return None if self._own == NO_CACHE else self._own

    def backend_of(self, request: ImageRequest) -> str:
        """The name of the cache that ``request`` is drawn with, as metrics have it."""
        if "cache_backend" not in request.model_fields_set:
            return self._own
        return (request.cache_backend or NO_CACHE).strip().lower().replace("-", "_")

    def close(self) -> None:
        """Cancel what is under way and leave the pipeline as it was; waits for the step that is being computed."""
        self.draining = True
        self.engine.close()
        self._threads.shutdown(wait=True)

    def aside(self, call: Callable[..., object], *arguments: object) -> None:
        """Call something that blocks, in another thread. Once the server has ended there is nothing left to call."""
        with suppress(RuntimeError):
            self._threads.submit(call, *arguments)


class Drawing:
    """One request under way: a generation for each of its pictures."""

    def __init__(self, service: Service, request: ImageRequest, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._request = request
        self._loop = loop
        self._generations: list[Generation] = []
        self._told: asyncio.Queue[Step | Picture | Exception] = asyncio.Queue()
        self._backend = service.backend_of(request)
        self._ends = loop.time() + service.limits.request_seconds
        self.cancelled = False

    @property
    def backend(self) -> str | None:
        """The cache that draws it; None for none."""
        return None if self._backend == NO_CACHE else self._backend

    def submit(self) -> None:
        """Hand every picture to the engine: all of them or none. Blocks while the cache settings are checked."""
        asked = self._request
        sides = asked.sides()
        first = asked.seed if asked.seed is not None else secrets.randbelow(2**32)
        try:
            for number in range(asked.n):
                params = OmniDiffusionSamplingParams(
                    width=sides[0] if sides else None,
                    height=sides[1] if sides else None,
                    num_inference_steps=asked.num_inference_steps,
                    guidance_scale=asked.guidance_scale,
                    true_cfg_scale=asked.true_cfg_scale,
                    negative_prompt=asked.negative_prompt,
                    seed=first + number,
                    output_type="pil",
                )
                named = "cache_backend" in asked.model_fields_set
                generation = self._service.engine.submit(
                    asked.prompt,
                    params,
                    cache_backend=asked.cache_backend if named else NOT_SAID,
                    cache_config=asked.cache_config,
                )
                self._generations.append(generation)
        except QueueFullError as error:
            raise Refusal(
                429, str(error), code="queue_full", headers={"Retry-After": str(self._service.retry_after())}
            ) from error
        except EngineClosedError as error:
            raise self._service.closing() from error
        except DitCacheError as error:
            # Well written, and yet this model or this cache cannot do it.
            raise Refusal(422, str(error), code="refused_by_model_or_cache") from error
        if self.cancelled:  # the client left meanwhile
            self.cancel()
        for number, generation in enumerate(self._generations):
            self._service.aside(self._follow, number, first + number, generation)

    async def updates(self) -> AsyncIterator[Step | Picture]:
        """Every step and every picture as it comes; ends with the last picture.

        Raises:
            Refusal: It took too long, was cancelled by the end of the server, or the pipeline failed.
        """
        missing = len(self._generations)
        while missing:
            try:
                update = await asyncio.wait_for(self._told.get(), self._ends - self._loop.time())
            except asyncio.TimeoutError:
                self.cancel()
                raise Refusal(
                    504,
                    f"there was no picture after {self._service.limits.request_seconds:g} s (--request-timeout);"
                    " the request was cancelled",
                    code="timeout",
                ) from None
            if isinstance(update, Exception):
                self.cancel()
                raise update
            missing -= isinstance(update, Picture)
            yield update
        self._service.over(self)

    def cancel(self) -> None:
        """Nobody waits for it any more: free what it holds. Harmless where it has ended."""
        self.stop()
        self._service.over(self)

    def stop(self) -> None:
        """Stop what is still being drawn; who waits for it is told. Returns at once."""
        self.cancelled = True
        for generation in list(self._generations):
            if not generation.finished:
                self._service.aside(generation.cancel)

    def _follow(self, number: int, seed: int, generation: Generation) -> None:
        """Tell what becomes of one picture, in a thread of its own."""
        try:
            seconds, steps = 0.0, 0
            for event in generation.steps():
                seconds, steps = seconds + event.seconds, steps + 1
                self._service.metrics.step(self._backend, event)
                self._tell(Step(number, event))
            output = generation.result()
            self._service.took(seconds)
            self._tell(_picture(number, seed, steps, output, self._request.output_format))
        except CancelledGeneration:
            self._tell(self._service.closing())
        except Exception as error:
            self._tell(error)

    def _tell(self, update: Step | Picture | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.put_nowait, update)


def _picture(number: int, seed: int, steps: int, output: Any, output_format: str) -> Picture:
    if output.final_output_type != "image" or not hasattr(output.images[0], "save"):
        raise Refusal(
            422,
            f"the model makes no pictures but {output.final_output_type}, which this endpoint cannot return",
            code="no_pictures",
        )
    picture = output.images[0]
    buffer = io.BytesIO()
    picture.save(buffer, output_format)
    summary = output.cache_summary
    cache = {
        "seed": seed,
        "steps": steps,
        "cached_steps": [] if summary is None else summary.cached_steps(),
        "blocks_run": None if summary is None else summary.blocks_run,
        "blocks_skipped": None if summary is None else summary.blocks_skipped,
        "seconds": {part: round(spent, 6) for part, spent in output.timings.items()},
        "events": [] if summary is None else [f"{event.kind}: {event.detail}" for event in summary.events],
    }
    size = f"{picture.width}x{picture.height}"
    return Picture(number, base64.b64encode(buffer.getvalue()).decode(), size, cache)
