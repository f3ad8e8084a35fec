"""What one request may ask for, and how much of it is read before it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.serve.failures import Refusal, send_refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit", "Limits"]


@dataclass(frozen=True)
class Limits:
    """The bounds of a server. A request beyond one is refused by name before any work.

    Raises:
        ConfigError: One is not above 0.
    """

    max_steps: int = 200
    """Denoising steps of a picture, as vLLM-Omni has it."""
    max_images: int = 10
    """Pictures of a request (``n``), as OpenAI and vLLM-Omni have it."""
    max_side: int = 2048
    """Pixels in a picture's width and height."""
    max_body: int = 64 * 1024
    """Bytes of a request."""
    body_seconds: float = 10.0
    """In which a request has to arrive."""
    request_seconds: float = 600.0
    """In which it has to be answered, waiting included."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is a bound above 0, got {value!r}")


class BodyLimit:
    """Reads what is posted, up to a size and for a time, before anything else sees the request.

    Only JSON is let through: a page of another site can have a browser post a form or a text, but not that.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(dict(scope["headers"]), receive)
        except Refusal as refusal:
            await send_refusal(refusal, scope, receive, send)
            return
        if body is None:  # nobody is there any more
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, receive_again, send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refusal(
                415,
                "the body of a request is JSON, with the header 'Content-Type: application/json';"
                f" got {kind.decode('latin-1') or 'no content type'}",
                code="unsupported_media_type",
            )
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.limits.max_body:
            raise self._too_large(int(said))
        body = bytearray()
        with anyio.move_on_after(self.limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > self.limits.max_body:
                    raise self._too_large(len(body))
                if not message.get("more_body", False):
                    return bytes(body)
        raise Refusal(
            408,
            f"the request did not arrive whole within {self.limits.body_seconds:g} s",
            code="request_timeout",
        )

    def _too_large(self, size: int) -> Refusal:
        return Refusal(
            413,
            f"the request has {size} bytes or more; this server takes {self.limits.max_body} (--max-body)",
            code="request_too_large",
        )
