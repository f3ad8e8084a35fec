"""The prompts of a trial, from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dit_cache_backends.errors import ConfigError


@dataclass(frozen=True)
class Prompt:
    """What to draw, and from which noise."""

    text: str
    seed: int
    call: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline's call for this prompt: ``negative_prompt``, ``image``, ..."""


def read_prompts(path: Path | str, seed: int = 0) -> list[Prompt]:
    """The prompts of a file; where it says no seed, prompt number ``i`` has ``seed + i``.

    A ``.txt`` file has one prompt a line; empty lines and those that begin with ``#`` are left out. A ``.json`` or
    ``.yaml`` file has a list, a ``.jsonl`` file one item a line, of texts or of mappings with ``prompt``, perhaps
    ``seed``, and other arguments of the pipeline's call.

    Raises:
        ConfigError: if it cannot be read, has no prompt, or an item that is none; each is named by its place.
    """
    path = Path(path).expanduser()
    try:
        items = _items(path)
    except OSError as error:
        raise ConfigError(f"the prompts in {path} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the prompts in {path} cannot be read as {path.suffix}: {error}") from error
    if not isinstance(items, list) or not items:
        raise ConfigError(
            f"{path}: expected a list of prompts that is not empty, got {items!r:.80}. Write one prompt a line into a "
            ".txt file, or a list of texts or mappings with 'prompt' into a .json, .jsonl or .yaml file."
        )
    return [_prompt(item, number, seed, path) for number, item in enumerate(items)]


def _items(path: Path) -> Any:
    text, kind = path.read_text(encoding="utf-8"), path.suffix.lower()
    if kind == ".json":
        return json.loads(text)
    if kind in (".yaml", ".yml"):
        return yaml.safe_load(text)
    lines = [line for line in text.splitlines() if line.strip()]
    if kind == ".jsonl":
        return [json.loads(line) for line in lines]
    return [line.strip() for line in lines if not line.lstrip().startswith("#")]


def _prompt(item: object, number: int, seed: int, path: Path) -> Prompt:
    where = f"{path}, prompt {number + 1}"
    if isinstance(item, str) and item:
        return Prompt(item, seed + number)
    if not isinstance(item, Mapping) or not isinstance(item.get("prompt"), str):
        raise ConfigError(f"{where}: expected a text, or a mapping with a text as 'prompt', got {item!r:.80}")
    own = item.get("seed", seed + number)
    if not isinstance(own, int) or isinstance(own, bool):
        raise ConfigError(f"{where}: seed is a whole number, got {own!r}")
    return Prompt(
        item["prompt"],
        own,
        {str(name): value for name, value in item.items() if name not in ("prompt", "seed")},
    )


def prompts_fingerprint(prompts: Sequence[Prompt]) -> str:
    """Of the texts, seeds and further arguments."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.text}\0{prompt.seed}\0".encode())
        for name, value in sorted(prompt.call.items()):
            digest.update(f"{name}={_text(value)}\0".encode())
    return digest.hexdigest()[:16]


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        data = value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        return f"{tuple(value.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
    return repr(value)
