"""Who may ask: the API key, and the names under which a server on this machine may be called."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING

from dit_cache_backends.serve.failures import Refusal, send_refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LOOPBACK", "Access", "is_loopback"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
GUARDED = "/v1/"


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach what is bound to ``host``."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Refuses calls without the key, and calls under a name that is not the server's.

    The second is for a server on the loopback: a page of another site may have its own name point there (DNS
    rebinding), and would then be let in by the browser as the server's own.

    Args:
        app: What is guarded. The key guards ``/v1/``; health, metrics and the page say nothing of any request.
        api_key: ``None`` lets everybody in.
        hosts: The names; empty allows every one.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str] = ()) -> None:
        self.app = app
        self._key = None if api_key is None else api_key.encode()
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await send_refusal(refusal, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if self._hosts and (name := _name(headers.get(b"host", b""))) not in self._hosts:
            return Refusal(
                403,
                f"this server is called {' or '.join(sorted(self._hosts))}, not {name!r};"
                " start it with --allowed-host to give it another name",
                code="unknown_host",
            )
        if self._key is None or not scope["path"].startswith(GUARDED):
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Compared in a time that does not tell how much of it is right.
        right = hmac.compare_digest(given.strip(), self._key)
        if scheme.lower() == b"bearer" and right:
            return None
        return Refusal(
            401,
            "this server wants an API key, in the header 'Authorization: Bearer KEY'; "
            + ("the one that was given is not it" if given else "none was given"),
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _name(host: bytes) -> str:
    """The name in a Host header, without its port."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() and ":" in text else text
