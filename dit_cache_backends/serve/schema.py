"""What a request for pictures may say, in the names of OpenAI and vLLM-Omni."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dit_cache_backends.serve.failures import Refusal
from dit_cache_backends.serve.limits import Limits

__all__ = ["FIELDS", "ImageRequest", "check", "check_model"]

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
_FILE = re.compile(r"[/\\]|^[@~]|\.(json|ya?ml)$", re.IGNORECASE)
_WRITING = ("save_as",)  # of mag_cache: what it measures goes into a file of that name


class ImageRequest(BaseModel):
    """The body of ``POST /v1/images/generations``. What is left out is the model's own, or the server's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = Field(1, ge=1)
    size: str | None = None
    response_format: str | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = False
    user: str | None = None
    """Taken for the sake of clients that send it, and not used."""
    negative_prompt: str | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0)
    true_cfg_scale: float | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**63)
    """Of the first picture; number ``i`` has ``seed + i``, so that each can be drawn again alone."""
    cache_backend: str | None = None
    """The cache of this request alone; ``"none"``, or null where it is given, for none."""
    cache_config: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _no_url(cls, value: str | None) -> str | None:
        if value == "url":
            raise ValueError("this server keeps no pictures, so it has no URL to give; ask for b64_json")
        if value not in (None, "b64_json"):
            raise ValueError("b64_json is the one that there is")
        return value

    @field_validator("size")
    @classmethod
    def _written_as(cls, value: str | None) -> str | None:
        if value not in (None, "auto") and not _SIZE.fullmatch(value or ""):
            raise ValueError("a size is WIDTHxHEIGHT in pixels, such as 1024x768, or auto")
        return value

    @field_validator("cache_config")
    @classmethod
    def _no_files(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (found := _names_file(value)) is not None:
            raise ValueError(
                f"{found!r} would have the server read or write a file, which a request cannot; give the options"
                " themselves, or have the server started with them"
            )
        return value

    def sides(self) -> tuple[int, int] | None:
        """Width and height in pixels; None where the model decides."""
        found = _SIZE.fullmatch(self.size or "")
        return (int(found[1]), int(found[2])) if found else None


FIELDS: Sequence[str] = tuple(ImageRequest.model_fields)


def check(request: ImageRequest, limits: Limits, model: str, multiple: int) -> None:
    """Refuse what is well written and yet not to be had from this server.

    Args:
        request: What was asked for.
        limits: The server's bounds.
        model: The name of the model that is served.
        multiple: Of how many pixels the pipeline makes its pictures; it would round another size without a word.

    Raises:
        Refusal: with the field that is meant.
    """
    if request.model is not None:
        check_model(request.model, model)
    _at_most("n", request.n, limits.max_images, "--max-images")
    _at_most("num_inference_steps", request.num_inference_steps, limits.max_steps, "--max-steps")
    for side in request.sides() or ():
        _at_most("size", side, limits.max_side, "--max-side")
        if side % multiple:
            nearest = max(round(side / multiple), 1) * multiple
            raise Refusal(
                400,
                f"size: this model makes pictures in multiples of {multiple} pixels; {side} is none, {nearest} is",
                code="invalid_value",
                param="size",
            )


def check_model(asked: str, served: str) -> None:
    """Refuse another model than the one that is served.

    Raises:
        Refusal: with the name of the one that is.
    """
    if asked != served:
        raise Refusal(
            404,
            f"the model {asked!r} is not served here; this server has {served!r}",
            code="model_not_found",
            param="model",
        )


def _at_most(field: str, value: int | None, bound: int, option: str) -> None:
    if value is not None and value > bound:
        raise Refusal(
            400, f"{field}: at most {bound} ({option}), got {value}", code="invalid_value", param=field
        )


def _names_file(value: object) -> str | None:
    """The first text in ``value`` by which a configuration, or a backend's option, would name a file."""
    if isinstance(value, str):
        return value if _FILE.search(value) else None
    if isinstance(value, Mapping):
        for key, each in value.items():
            if key in _WRITING and each is not None:
                return str(key)
            if (found := _names_file(each)) is not None:
                return found
    elif isinstance(value, list):
        return next((found for each in value if (found := _names_file(each)) is not None), None)
    return None
