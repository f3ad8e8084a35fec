"""A plan: which steps are computed, 1, and which are skipped, 0, read from digits or from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from dit_cache_backends import ConfigError

Mask = tuple[int, ...]

SUFFIXES = (".json", ".yaml", ".yml")
ABOUT = ("model", "source", "about")
"""What else a file may say; it is for its reader."""


@dataclass(frozen=True)
class Plan:
    """A mask, and others for branches of their own."""

    mask: Mask
    branches: Mapping[str, Mask] = field(default_factory=dict)

    def of(self, branch: str) -> Mask:
        """The mask of a guidance branch."""
        return self.branches.get(branch, self.mask)


def read_plan(mask: object, branches: Mapping[str, object]) -> Plan:
    """The plan that two options give; ``mask`` may be the path of a file that has both.

    Raises:
        ConfigError: if a mask is no row of 0 and 1 that begins with 1, or the file is not as it should be.
    """
    where = "mask"
    if isinstance(mask, str) and mask.lower().endswith(SUFFIXES):
        where, content = mask, _read(Path(mask).expanduser())
        if isinstance(content, Mapping):
            unknown = [name for name in content if name not in ("mask", "branches", *ABOUT)]
            if unknown or "mask" not in content:
                raise ConfigError(
                    f"{where}: expected a mask, or a mapping with mask, branches, {', '.join(ABOUT)}; "
                    f"got {', '.join(map(repr, content)) or 'an empty one'}"
                )
            mask, branches = content["mask"], branches or content.get("branches") or {}
        else:
            mask = content
    if not isinstance(branches, Mapping):
        raise ConfigError(f"{where}: branches: expected a mapping from branches to masks, got {branches!r}")
    parsed = {str(name): _digits(value, f"{where}: branches: {name}") for name, value in branches.items()}
    return Plan(_digits(mask, where), parsed)


def resampled(mask: Sequence[int], steps: int) -> Mask:
    """The mask for another number of steps: each takes the digit of the step nearest to it in the run."""
    if steps == 1:
        return (mask[0],)
    return tuple(mask[round(step * (len(mask) - 1) / (steps - 1))] for step in range(steps))


def _digits(mask: object, where: str) -> Mask:
    valid = (
        isinstance(mask, (str, list, tuple)) and len(mask) > 0 and all(str(digit) in "01" for digit in mask)
    )
    if not valid or not isinstance(mask, (str, list, tuple)):
        raise ConfigError(
            f"{where}: expected a list or a text of 0 and 1, such as 1101, or the path of a "
            f"{', '.join(SUFFIXES)} file; got {mask!r}"
        )
    digits = tuple(int(digit) for digit in mask)
    if not digits[0]:
        raise ConfigError(
            f"{where}: the first step has nothing to be skipped with; begin with 1, not {mask!r}"
        )
    return digits


def _read(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            return json.loads(text)
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"mask: the file {path} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"mask: {path} is not valid JSON or YAML: {error}") from error
