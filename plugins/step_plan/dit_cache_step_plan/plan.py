"""A plan: which steps are computed, 1, and which are skipped, 0, read from digits or from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dit_cache_backends import ConfigError

Mask = tuple[int, ...]
Weights = dict[int, tuple[float, ...]]
"""For each skipped step those of the last computed steps before it, the newest last."""

SUFFIXES = (".json", ".yaml", ".yml")
ABOUT = ("model", "source", "about")
"""What else a file may say; it is for its reader."""
FORMAT = "dit-cache-plan 1"
"""What a file of ``dit-cache plan`` says it is."""


@dataclass(frozen=True)
class Plan:
    """A mask, and others for branches of their own; from a file of ``dit-cache plan`` all that it was found with."""

    mask: Mask
    branches: Mapping[str, Mask] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``step_plan``: the predictor, and the blocks that always run."""
    weights: Weights = field(default_factory=dict)
    """Of a forecast that was fitted to the mask; empty where a predictor of the options foretells."""
    provenance: object = None
    """What the plan was found on, as plain data."""

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
            if "format" in content:
                raise ConfigError(f"mask: {where} is a file of `dit-cache plan`; give it as plan: {where}")
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


def read_plan_file(path: Path | str, compute: int | None = None) -> Plan:
    """One of the plans in a file of ``dit-cache plan``: that of ``compute`` computed steps, else the file's own choice.

    Raises:
        ConfigError: if it is no such file, or has no such plan.
    """
    path = Path(path).expanduser()
    content = _read(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ConfigError(
            f"plan: {path} is no file of `dit-cache plan` (format: {FORMAT}). A mask of your own is given as mask."
        )
    listed = content.get("plans")
    plans = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    wanted = content.get("compute") if compute is None else compute
    found = next((each for each in plans if each.get("compute") == wanted), None)
    if found is None:
        there = ", ".join(str(each.get("compute")) for each in plans) or "none"
        raise ConfigError(
            f"plan: {path} has no plan of {wanted} computed steps; there are plans of {there} (compute)"
        )
    where = f"{path}, {wanted} computed steps"
    branches, predictor = found.get("branches") or {}, found.get("predictor")
    if not isinstance(branches, Mapping) or not isinstance(predictor, Mapping):
        raise ConfigError(
            f"plan: {where}: expected mappings as branches and predictor, got {dict(found)!r:.160}"
        )
    if branches and "weights" in predictor:
        raise ConfigError(f"plan: {where}: weights are fitted to the mask, and branches have other masks")
    blocks = {name: content.get(name, 0) for name in ("Fn_compute_blocks", "Bn_compute_blocks")}
    mask = _digits(found.get("mask"), where)
    fitted = predictor.get("weights")
    return Plan(
        mask,
        {str(name): _digits(other, f"{where}: branches: {name}") for name, other in branches.items()},
        {**blocks, **{name: value for name, value in predictor.items() if name != "weights"}},
        {} if fitted is None else read_weights(fitted, mask, f"{where}: weights"),
        content.get("provenance"),
    )


def read_weights(weights: object, mask: Mask, where: str = "weights") -> Weights:
    """The weights of a forecast that was fitted to a mask.

    Raises:
        ConfigError: if a skipped step has none, another one has some, or there are not so many steps before it.
    """
    if not isinstance(weights, Mapping):
        raise ConfigError(
            f"{where}: expected a mapping from skipped steps to lists of numbers, got {weights!r:.80}"
        )
    found: Weights = {}
    for key, values in weights.items():
        step = int(key) if str(key).isdecimal() else -1
        if not 0 <= step < len(mask) or mask[step]:
            raise ConfigError(f"{where}: {key!r} is no step, counted from 0, that the mask skips")
        before = sum(mask[:step])
        numbers = isinstance(values, (list, tuple)) and all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
        if not numbers or not 1 <= len(values) <= before:
            raise ConfigError(
                f"{where}: step {step} has {before} computed steps before it, so that a list of 1 to {before} finite "
                f"numbers is expected, got {values!r:.80}"
            )
        found[step] = tuple(float(value) for value in values)
    without = [step for step, digit in enumerate(mask) if not digit and step not in found]
    if without:
        raise ConfigError(
            f"{where}: the mask skips step {', '.join(map(str, without))}, for which there are none"
        )
    return found


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
        raise ConfigError(f"the file {path} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid JSON or YAML: {error}") from error
