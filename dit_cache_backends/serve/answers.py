"""A drawing as an answer: one JSON document, or server-sent events while it is made."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi.sse import EventSourceResponse, format_sse_event

from dit_cache_backends.serve.failures import Refusal, body_of, internal
from dit_cache_backends.serve.metrics import OUTCOME
from dit_cache_backends.serve.service import Drawing, Picture, Step

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.types import Receive, Scope, Send

    from dit_cache_backends.serve.schema import ImageRequest

__all__ = ["Progress", "whole"]

log = logging.getLogger("uvicorn.error")


async def whole(drawing: Drawing, asked: ImageRequest, request: Request) -> dict[str, Any]:
    """Every picture in one document, in the order of their seeds; the drawing is cancelled if the client leaves.

    Raises:
        Refusal: There is no picture; 499 where there is nobody to tell.
    """
    began = time.perf_counter()
    pictures = asyncio.ensure_future(_pictures(drawing))
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((pictures, left), return_when=asyncio.FIRST_COMPLETED)
        found = pictures.result() if pictures.done() else None
    except Exception as error:
        raise _refusal(error) from error
    finally:
        drawing.cancel()
        for task in (pictures, left):
            task.cancel()
        await asyncio.gather(pictures, left, return_exceptions=True)
    if found is None:
        raise Refusal(499, "the client left", code="client_closed_request")
    return {
        "created": int(time.time()),
        "data": [{"b64_json": picture.b64_json} for picture in found],
        "output_format": asked.output_format,
        "size": found[0].size,
        "cache": {**_sum(drawing, found), "seconds": round(time.perf_counter() - began, 6)},
    }


class Progress(EventSourceResponse):
    """Server-sent events: each step, each picture, and ``[DONE]``. The drawing is cancelled if the client leaves.

    What goes wrong once the stream has begun is an event of its own, with the error as it would be in an answer.
    """

    def __init__(self, drawing: Drawing, asked: ImageRequest) -> None:
        super().__init__(
            self._events(asked),
            # Proxies that collect what they hand on would hide the progress.
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._drawing = drawing
        self._status = 499  # unless the stream comes to its end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._drawing.cancel()
            scope[OUTCOME] = self._status

    async def _events(self, asked: ImageRequest) -> AsyncIterator[bytes]:
        try:
            async for update in self._drawing.updates():
                yield _event(
                    _step(update) if isinstance(update, Step) else _completed(update, self._drawing, asked)
                )
        except Exception as error:
            refusal = _refusal(error)
            self._status = refusal.status
            yield _event({"type": "error", **body_of(refusal)})
        else:
            self._status = 200
        yield format_sse_event(data_str="[DONE]")


async def _pictures(drawing: Drawing) -> list[Picture]:
    found = [update async for update in drawing.updates() if isinstance(update, Picture)]
    return sorted(found, key=lambda picture: picture.image)


def _refusal(error: Exception) -> Refusal:
    """What is told of an error: of the pipeline's own nothing but that there was one, since it may name paths."""
    if isinstance(error, Refusal):
        return error
    log.error("a generation failed", exc_info=error)
    return internal()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(content: dict[str, Any]) -> bytes:
    return format_sse_event(event=content["type"], data_str=json.dumps(content))


def _step(step: Step) -> dict[str, Any]:
    event = step.event
    return {
        "type": "image_generation.step",
        "image": step.image,
        "index": event.index,
        "total": event.total,
        "blocks_run": event.blocks_run,
        "blocks_skipped": event.blocks_skipped,
        "skipped": event.skipped,
        "cached": event.cached,
        "reason": event.reason,
        "seconds": round(event.seconds, 6),
    }


def _completed(picture: Picture, drawing: Drawing, asked: ImageRequest) -> dict[str, Any]:
    """OpenAI's own event, and what the cache did."""
    return {
        "type": "image_generation.completed",
        "image": picture.image,
        "created_at": int(time.time()),
        "b64_json": picture.b64_json,
        "output_format": asked.output_format,
        "size": picture.size,
        "cache": {"backend": drawing.backend, **picture.cache},
    }


def _sum(drawing: Drawing, pictures: Sequence[Picture]) -> dict[str, Any]:
    each = [picture.cache for picture in pictures]
    counted = drawing.backend is not None
    return {
        "backend": drawing.backend,
        "steps": sum(cache["steps"] for cache in each),
        "steps_cached": sum(len(cache["cached_steps"]) for cache in each),
        "blocks_run": sum(cache["blocks_run"] for cache in each) if counted else None,
        "blocks_skipped": sum(cache["blocks_skipped"] for cache in each) if counted else None,
        "images": each,
    }
