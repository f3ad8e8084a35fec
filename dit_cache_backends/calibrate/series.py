"""What is recorded of one branch of one transformer in one dense run, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_cache_backends.errors import ConfigError

COLUMNS = {
    "timestep": "the scheduler's timestep",
    "sigma": "the scheduler's noise level",
    "latent": "relative change of the latents that the transformer was given",
    "input": "relative change of the tokens before the first block",
    "input_size": "mean size of a number among them",
    "signal": "relative change of the modulated input, as tea_cache measures it",
    "first": "relative change of what the first blocks add",
    "residual": "relative change of what all blocks add",
    "norm": "mean over the tokens of the length of what all blocks add",
    "ratio": "mean over the tokens of that length over the one of the step before (MagCache)",
    "ratio_std": "its standard deviation over the tokens",
    "cosine": "mean over the tokens of 1 - the cosine between what all blocks add and what they added before",
    "exit": "relative change of the tokens behind the first stack",
    "exit_size": "mean size of a number among them",
    "output": "relative change of the tokens behind the last block of all",
}
"""One number a step each; null where there is none, as for a change at the first step. A change is
``sum|before - now| / sum|before|`` to the step before (``relative_difference``); residuals are of the first stack.
"""

PAIRS = ("input", "first", "exit")
"""Of these the change between any two steps is there, too."""

Numbers = list[float | None]


@dataclass
class Series:
    """One branch of one transformer in one run."""

    transformer: str
    branch: str
    stack: str
    """The first stack: where residuals and the signal are measured."""
    signal: str
    """The name of the signal; empty where the model's card has none."""
    first_blocks: int
    """How many blocks ``first`` is about."""
    total: int | None = None
    """Steps of the whole run."""
    steps: list[int] = field(default_factory=list)
    """The run's steps in which the transformer was called."""
    columns: dict[str, Numbers] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    """See ``COLUMNS``."""
    pairs: dict[str, list[Numbers]] = field(default_factory=lambda: {name: [] for name in PAIRS})
    """``pairs[name][now][before]``, the relative change between two of its steps, ``before < now``. Of large tensors
    taken on evenly spaced numbers alone."""

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def name(self) -> str:
        """``transformer:branch``."""
        return f"{self.transformer}:{self.branch}"

    def change(self, name: str, before: int, now: int) -> float | None:
        """The relative change of one of ``PAIRS`` between two steps, counted from 0 in this series."""
        return self.pairs[name][now][before]

    def points(self) -> Iterator[tuple[int, float, float]]:
        """What TeaCache's curve is fitted to: a step, the signal's change there, and the output's."""
        pairs = zip(self.columns["signal"], self.columns["output"], strict=True)
        for step, (signal, output) in enumerate(pairs):
            if signal is not None and output is not None:
                yield step, signal, output

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "transformer": self.transformer,
            "branch": self.branch,
            "stack": self.stack,
            "signal": self.signal,
            "first_blocks": self.first_blocks,
            "total": self.total,
            "steps": self.steps,
            "columns": self.columns,
            "pairs": self.pairs,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> Series:
        """Read it from a record's data.

        Raises:
            ConfigError: if something is missing or of another length.
        """
        try:
            found = cls(
                str(data["transformer"]),
                str(data["branch"]),
                str(data["stack"]),
                str(data["signal"]),
                int(data["first_blocks"]),
                data["total"],
                [int(step) for step in data["steps"]],
                {name: list(data["columns"][name]) for name in COLUMNS},
                {name: [list(row) for row in data["pairs"][name]] for name in PAIRS},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: a series cannot be read: {type(error).__name__} {error}") from error
        lengths = {len(found), *map(len, found.columns.values()), *map(len, found.pairs.values())}
        if len(lengths) != 1:
            raise ConfigError(
                f"{where}: the columns of {found.name} have different lengths: {sorted(lengths)}"
            )
        return found
