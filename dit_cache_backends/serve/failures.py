"""Every answer that is not a success, in the form that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dit_cache_backends.errors import DitCacheError, near

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.types import Receive, Scope, Send

__all__ = ["Refusal", "add_handlers", "body_of", "internal", "send_refusal"]

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class Refusal(DitCacheError):
    """A request that gets no picture.

    Args:
        status: The HTTP status.
        message: What was given, what was expected, what to do.
        code: A word for programs.
        param: The field that is meant.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def internal() -> Refusal:
    """Something broke. What it was may name paths, so it is in the server's log and not told."""
    return Refusal(500, "the server failed; its log says why", code="internal_error")


def body_of(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kind = _TYPES.get(refusal.status, "invalid_request_error")
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.code}}


async def send_refusal(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with it where no framework is around. The connection is closed: the rest of the body may be on its way."""
    refusal.headers["Connection"] = "close"
    await _response(refusal)(scope, receive, send)


def add_handlers(app: FastAPI, fields: Sequence[str]) -> None:
    """Have ``app`` answer every error in OpenAI's form; ``fields`` are those of a request, for the nearest name."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return _response(error if isinstance(error, Refusal) else Refusal(500, str(error), code="error"))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return _response(_misfit(problems, fields))

    async def http(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        told = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.url.path} does not take {request.method}",
        }.get(status, getattr(error, "detail", "error"))
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "error")
        return _response(Refusal(status, told, code=code, headers=headers))

    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _response(internal())

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, broken)


def _response(refusal: Refusal) -> JSONResponse:
    from fastapi.responses import JSONResponse

    return JSONResponse(body_of(refusal), refusal.status, refusal.headers)


def _misfit(problems: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Refusal:
    """What pydantic found in a request, as one refusal."""
    told = [_told(problem, fields) for problem in problems]
    first: Mapping[str, Any] = problems[0] if problems else {"type": "", "loc": ()}
    code = {
        "extra_forbidden": "unknown_parameter",
        "missing": "missing_parameter",
        "json_invalid": "invalid_json",
    }.get(str(first["type"]), "invalid_value")
    return Refusal(400, "; ".join(told), code=code, param=_field(first["loc"]) or None)


def _told(problem: Mapping[str, Any], fields: Sequence[str]) -> str:
    field = _field(problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown field {field!r}.{near(field, fields)} Known: {', '.join(fields)}"
        case "missing":
            return f"{field or 'the body'} has to be given"
        case "json_invalid":
            return f"the body is not valid JSON: {problem.get('ctx', {}).get('error', problem['msg'])}"
    message = problem["msg"].removeprefix("Value error, ")
    given = json.dumps(problem.get("input"), default=str)
    return f"{field or 'the body'}: {message}, got {given if len(given) <= 80 else given[:77] + '...'}"


def _field(place: Sequence[Any]) -> str:
    return ".".join(str(part) for part in place if part != "body" and not isinstance(part, int))
