"""Which model and scheduler something was measured on, to refuse it for others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.models import uncompiled
from dit_cache_backends.pipelines import transformers_of

SAMPLED = 16
"""Numbers of each weight that go into the fingerprint."""

UNREAD = "unread"


@dataclass(frozen=True)
class Provenance:
    """What a measurement holds for. Fingerprints are the first 16 digits of a SHA-256 (or of two)."""

    pipeline: str
    """Its class."""
    model: str
    """The name it was loaded by, of a folder its last part; for its reader, and not compared."""
    transformers: Mapping[str, str]
    """For each its class and the fingerprint of its config."""
    weights: Mapping[str, str]
    """For each the fingerprint of its weights' names, shapes and some of their numbers, rounded to bfloat16."""
    scheduler: str
    """Its class and the fingerprint of its config."""
    versions: Mapping[str, str]
    """Of this package, torch and diffusers; for the reader, and not compared."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {name: dict(v) if isinstance(v, Mapping) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: object, where: str) -> Provenance:
        """Read it from a file's data; ``where`` is named in the error.

        Raises:
            ConfigError: if a field is missing or of another kind.
        """
        given = dict(data) if isinstance(data, Mapping) else {}
        wrong = [
            each.name
            for each in fields(cls)
            if not isinstance(given.get(each.name), Mapping if "Mapping" in str(each.type) else str)
        ]
        if wrong:
            raise ConfigError(
                f"{where}: {', '.join(wrong)} of its provenance cannot be read; got {data!r:.120}"
            )
        return cls(**{each.name: given[each.name] for each in fields(cls)})

    def differences(self, other: Provenance) -> list[str]:
        """In which respects this one, of a measurement, does not hold for ``other``, the model at hand."""
        found = []
        for name, what in (
            ("pipeline", "pipeline"),
            ("transformers", "transformer"),
            ("weights", "weights"),
            ("scheduler", "scheduler"),
        ):
            mine, others = getattr(self, name), getattr(other, name)
            if name == "weights" and mine.keys() == others.keys():
                same = all(same_weights(mine[each], others[each]) for each in mine)
            else:
                same = mine == others
            if not same:
                found.append(f"{what}: measured on {_said(mine)}, here {_said(others)}")
        return found


def provenance(pipeline: Any) -> Provenance:
    """What is measured on ``pipeline`` holds for this."""
    modules = {name: uncompiled(module) for name, module in transformers_of(pipeline).items()}
    scheduler = getattr(pipeline, "scheduler", None)
    name = str(getattr(pipeline, "name_or_path", "") or "")
    return Provenance(
        type(pipeline).__name__,
        Path(name).name if Path(name).is_dir() else name,
        {
            name: f"{type(module).__name__} {config_fingerprint(getattr(module, 'config', {}))}"
            for name, module in modules.items()
        },
        {name: weights_fingerprint(module) for name, module in modules.items()},
        "none" if scheduler is None else f"{type(scheduler).__name__} {config_fingerprint(scheduler.config)}",
        {name: version(name) for name in ("dit-cache-backends", "torch", "diffusers")},
    )


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Of a config's values, without what diffusers notes about its file."""
    kept = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return _digest(json.dumps(kept, sort_keys=True, default=str).encode())


def weights_fingerprint(module: nn.Module) -> str:
    """Of the names and shapes of all parameters and buffers that are saved, and of their first numbers.

    The second part is ``unread`` where numbers cannot be seen: weights that are offloaded, in shards or quantized.
    """
    shapes, numbers, seen = hashlib.sha256(), hashlib.sha256(), True
    # torch.compile(block) puts a module of its own around the block.
    named = {name.replace("_orig_mod.", ""): tensor for name, tensor in module.state_dict().items()}
    for name, tensor in sorted(named.items()):
        shapes.update(f"{name} {tuple(tensor.shape)} ".encode())
        if not tensor.is_floating_point():
            continue
        seen = seen and not tensor.is_meta and type(tensor) in (torch.Tensor, nn.Parameter)
        if seen:
            some = tensor.detach().reshape(-1)[:SAMPLED].to("cpu", torch.bfloat16)
            numbers.update(some.view(torch.int16).numpy().tobytes())
    return f"{shapes.hexdigest()[:16]}-{numbers.hexdigest()[:16] if seen else UNREAD}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights; numbers count only where they were read for both."""
    if UNREAD in (one.rpartition("-")[2], other.rpartition("-")[2]):
        return one.rpartition("-")[0] == other.rpartition("-")[0]
    return one == other


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _said(value: object) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)
