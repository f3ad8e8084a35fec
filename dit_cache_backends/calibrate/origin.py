"""What a record is of: model, scheduler, call and prompts; and whether it holds for the model at hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.models import card_for, uncompiled
from dit_cache_backends.models.card import Card
from dit_cache_backends.pipelines import transformers_of
from dit_cache_backends.trials.prompts import Prompt
from dit_cache_backends.trials.provenance import Provenance, provenance, same_weights, weights_fingerprint

SCHEDULER = "scheduler"


@dataclass(frozen=True)
class Origin:
    """What was measured on. All of it is written into records and calibration files."""

    provenance: Provenance
    libraries: Mapping[str, str]
    """For each transformer the package that its class comes from."""
    blocks: Mapping[str, Mapping[str, int]]
    """For each transformer how many blocks each of its stacks has."""
    configs: Mapping[str, Mapping[str, Any]]
    """Of the scheduler and of each transformer, without what diffusers notes about their files."""
    steps: int
    call: Mapping[str, Any]
    """Arguments of every call: the resolution, guidance, ..."""
    first_blocks: int
    prompts: int
    prompts_hash: str
    seeds: tuple[int, ...]
    texts: tuple[str, ...] | None
    """None where they were not to be written down."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            **self.provenance.to_dict(),
            "libraries": dict(self.libraries),
            "blocks": {name: dict(stacks) for name, stacks in self.blocks.items()},
            "configs": {name: dict(config) for name, config in self.configs.items()},
            "steps": self.steps,
            "call": dict(self.call),
            "first_blocks": self.first_blocks,
            "prompts": self.prompts,
            "prompts_hash": self.prompts_hash,
            "seeds": list(self.seeds),
            "texts": None if self.texts is None else list(self.texts),
        }

    @classmethod
    def from_dict(cls, data: object, where: str) -> Origin:
        """Read it from a file's data; ``where`` is named in the error.

        Raises:
            ConfigError: if a field is missing or of another kind.
        """
        measured_on = Provenance.from_dict(data, where)
        given: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {}
        try:
            return cls(
                measured_on,
                {str(name): str(library) for name, library in given["libraries"].items()},
                {str(name): dict(stacks) for name, stacks in given["blocks"].items()},
                {str(name): dict(config) for name, config in given["configs"].items()},
                int(given["steps"]),
                dict(given["call"]),
                int(given["first_blocks"]),
                int(given["prompts"]),
                str(given["prompts_hash"]),
                tuple(int(seed) for seed in given["seeds"]),
                None if given["texts"] is None else tuple(map(str, given["texts"])),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: what it was measured on cannot be read: {type(error).__name__} {error}"
            ) from error

    def other_run(self, other: Origin) -> list[str]:
        """In which respects ``other`` is not the same set of runs; versions and texts do not count."""
        return self.provenance.differences(other.provenance) + [
            f"{name}: {mine!r:.80} there, {theirs!r:.80} here"
            for name, mine, theirs in (
                ("steps", self.steps, other.steps),
                ("call", dict(self.call), dict(other.call)),
                ("first_blocks", self.first_blocks, other.first_blocks),
                ("prompts", (self.prompts, self.prompts_hash), (other.prompts, other.prompts_hash)),
            )
            if mine != theirs
        ]

    def mismatches(self, name: str, transformer: nn.Module, card: Card, pipeline: object) -> list[str]:
        """Why what was measured does not hold for ``transformer``, which ``pipeline`` has under ``name``.

        Compared are the scheduler's class and every value that both configurations have; the transformer's class,
        configuration and weights. A transformer of another library than the one measured (vLLM-Omni has classes of its
        own for the models of diffusers, whose weights have other names) is compared by the number of its blocks. The
        class of the pipeline is not compared, nor resolution or steps. What a bare transformer does not have is not,
        either.
        """
        if name not in self.provenance.transformers:
            known = ", ".join(self.provenance.transformers)
            return [f"transformers: measured on {known}, not on {name}"]
        found = self._scheduler_mismatches(getattr(pipeline, SCHEDULER, None))
        model = uncompiled(transformer)
        if library_of(model) != self.libraries.get(name):
            here, there = depths_of(model, card), dict(self.blocks.get(name, {}))
            if sorted(here.values()) != sorted(there.values()):
                found.append(f"{name}: measured on {_blocks(there)}, here {_blocks(here)}")
            return found
        there_class = self.provenance.transformers[name].partition(" ")[0]
        if type(model).__name__ != there_class:
            found.append(f"{name}: measured on a {there_class}, here {type(model).__name__}")
        found += _config_mismatches(
            name, self.configs.get(name, {}), plain_config(getattr(model, "config", None))
        )
        if not found and not same_weights(self.provenance.weights.get(name, ""), weights_fingerprint(model)):
            found.append(f"{name}: its weights are others than those that were measured")
        return found

    def _scheduler_mismatches(self, scheduler: Any) -> list[str]:
        if scheduler is None:
            return []
        there = self.provenance.scheduler.partition(" ")[0]
        if type(scheduler).__name__ != there:
            return [f"scheduler: measured with {there}, here {type(scheduler).__name__}"]
        return _config_mismatches(
            SCHEDULER, self.configs.get(SCHEDULER, {}), plain_config(getattr(scheduler, "config", None))
        )


def origin_of(
    pipeline: Any,
    name: str,
    steps: int,
    call: Mapping[str, Any],
    prompts: Sequence[Prompt],
    first_blocks: int,
    texts: bool,
) -> Origin:
    """What runs of ``pipeline``, which was loaded as ``name``, on ``prompts`` are measured on.

    Tensors among the arguments, such as embeddings, are written down as their hash.

    Raises:
        ConfigError: if other arguments of the call are no plain data, which could not be written down.
    """
    modules = {name: uncompiled(module) for name, module in transformers_of(pipeline).items()}
    configs = {name: plain_config(getattr(module, "config", None)) for name, module in modules.items()}
    scheduler = getattr(pipeline, SCHEDULER, None)
    if scheduler is not None:
        configs[SCHEDULER] = plain_config(scheduler.config)
    listed = [[each.text, each.seed, dict(each.call)] for each in prompts]
    try:
        text = json.dumps([listed, dict(call)], sort_keys=True, default=_hashed)
    except TypeError as error:
        raise ConfigError(
            f"the arguments of the call have to be plain data, since they are written down: {error}"
        ) from error
    plain, plain_call = json.loads(text)
    return Origin(
        provenance=replace(provenance(pipeline), model=Path(name).name if Path(name).is_dir() else name),
        libraries={name: library_of(module) for name, module in modules.items()},
        blocks={name: depths_of(module, card_for(module)) for name, module in modules.items()},
        configs=configs,
        steps=steps,
        call=plain_call,
        first_blocks=first_blocks,
        prompts=len(prompts),
        prompts_hash=hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16],
        seeds=tuple(each.seed for each in prompts),
        texts=tuple(each.text for each in prompts) if texts else None,
    )


def _hashed(value: object) -> str:
    if not isinstance(value, Tensor):
        raise TypeError(f"a {type(value).__name__} is among them")
    numbers = value.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    return f"tensor {tuple(value.shape)} {hashlib.sha256(numbers).hexdigest()[:16]}"


def library_of(module: nn.Module) -> str:
    """The top-level package of a module's class."""
    return type(module).__module__.partition(".")[0]


def depths_of(module: nn.Module, card: Card) -> dict[str, int]:
    """How many blocks each stack of a transformer has."""
    stacks = card.stacks if card.arrange is None else card.arrange(module)
    return {
        each.name: sum(
            len(list(module.get_submodule(blocks.path).children())[slice(*blocks.part)])
            for blocks in each.lists
        )
        for each in stacks
    }


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as data that can be written down, without what diffusers notes about its file."""
    if not isinstance(config, Mapping):
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return {name: value for name, value in plain.items() if not name.startswith("_")}


def _config_mismatches(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Values that differ; what only one of them has may be new in another release."""
    return [
        f"{what}: {name} was {there[name]!r:.60}, here {here[name]!r:.60}"
        for name in there
        if name in here and there[name] != here[name]
    ]


def _blocks(depths: Mapping[str, int]) -> str:
    return ", ".join(f"{depth} {name}" for name, depth in depths.items()) or "no blocks"
