"""Magnitude ratios: what a model's residual grows by from step to step, published or measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_cache_backends import ConfigError
from dit_cache_backends.calibrate import Calibration, is_calibration, read_calibration, read_data

ANY = "*"


@dataclass(frozen=True)
class RatioSet:
    """Ratios of one model, and where they are from.

    ``ratios`` has a list for each ``transformer:branch``, for a ``transformer`` whatever the branch, or for ``*``, all
    of them. A list has one number for each step of the run it was measured in: ``mean(|r_t| / |r_(t-1)|)`` over the
    tokens, where ``r_t`` is what the blocks add at step ``t``; the first step has 1.
    """

    model: str
    source: str
    ratios: Mapping[str, tuple[float, ...]]
    transformer: str = ""
    """The class of transformers that it is for, where that is known."""

    def of(self, transformer: str, branch: str) -> tuple[float, ...]:
        """The ratios of one branch of one transformer.

        Raises:
            ConfigError: if the set has none for it.
        """
        for key in (f"{transformer}:{branch}", transformer, ANY):
            if key in self.ratios:
                return self.ratios[key]
        raise ConfigError(
            f"mag_cache: the ratios of {self.model} are for {', '.join(self.ratios)}, not for {transformer}:{branch}. "
            "Calibrate again as the model is run now: calibrate: true."
        )


def _published() -> Mapping[str, RatioSet]:
    path = Path(__file__).with_name("published.json")
    sets: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: RatioSet(
            each["model"],
            each["source"],
            {key: tuple(ratios) for key, ratios in each["ratios"].items()},
            each["transformer"],
        )
        for name, each in sets.items()
    }


PUBLISHED = _published()
"""Numbers as they were published, digit by digit, by the name that the option ``ratios`` takes."""


def sets_for(transformer: str) -> list[str]:
    """The names of the published sets for a class of transformers. Several, where models of one class differ."""
    return [name for name, each in PUBLISHED.items() if each.transformer == transformer]


def nearest(ratios: Sequence[float], steps: int) -> tuple[float, ...]:
    """The ratios for another number of steps: each step takes that of the nearest one in the run (arXiv 2506.09045)."""
    if steps == 1:
        return (ratios[-1],)
    return tuple(ratios[round(step * (len(ratios) - 1) / (steps - 1))] for step in range(steps))


def file_of(name: str) -> Path:
    """Where the ratios called ``name`` are kept; a name that ends as that of a JSON or YAML file does is its path.

    Names stand for files in the folder that ``DIT_CACHE_MAG_RATIOS`` says, else in the user's cache folder.
    """
    if name.lower().endswith((".json", ".yaml", ".yml")):
        return Path(name).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("DIT_CACHE_MAG_RATIOS") or f"{cache}/dit-cache/mag-ratios"
    return Path(folder).expanduser() / f"{name}.json"


def find_ratios(given: str | Sequence[float]) -> RatioSet:
    """The ratios that an option gives: numbers, the name of a published or measured set, or a file.

    Raises:
        ConfigError: if there is no such set, or its file is not as it should be.
    """
    if not isinstance(given, str):
        return RatioSet("the given numbers", "given", {ANY: _numbers(given, "ratios")})
    if given in PUBLISHED:
        return PUBLISHED[given]
    path = file_of(given)
    if not path.exists():
        raise ConfigError(
            f"ratios: there is no set {given!r}: it is not published here ({', '.join(PUBLISHED)}), and {path} does "
            "not exist. Measure it: calibrate: true, save_as: " + given
        )
    content = _content(path)
    if is_calibration(content):
        return of_calibration(read_calibration(path))
    ratios = content.get("ratios") if isinstance(content, Mapping) else None
    if not isinstance(ratios, Mapping) or not ratios:
        raise ConfigError(
            f"ratios: {path}: expected a file of `dit-cache calibrate`, or a mapping with ratios: "
            "{transformer:branch: [1.0, ...]}"
        )
    lists = {str(key): _numbers(values, f"ratios: {path}: {key}") for key, values in ratios.items()}
    return RatioSet(str(content.get("model", path.stem)), str(content.get("source", path)), lists)


def calibration_of(given: str | Sequence[float] | None) -> Calibration | None:
    """The file of ``dit-cache calibrate`` that an option names; None where it gives something else."""
    if not isinstance(given, str) or given in PUBLISHED:
        return None
    path = file_of(given)
    return read_calibration(path) if path.exists() and is_calibration(_content(path)) else None


def of_calibration(found: Calibration) -> RatioSet:
    """The median ratios of a calibration, each branch of each transformer apart."""
    lists = {key: fit.ratios.median for key, fit in found.ratios.items()}
    return RatioSet(found.origin.provenance.model or found.label, found.label, lists)


def _content(path: Path) -> Any:
    try:
        return read_data(path)
    except ConfigError as error:
        raise ConfigError(f"ratios: {error}") from error


def save_ratios(name: str, model: str, key: str, ratios: Sequence[float]) -> Path:
    """Put one list into the file of ``name``, beside those of other branches that are there."""
    path = file_of(name)
    content: dict[str, Any] = {"model": model, "source": "measured by dit-cache-mag-cache", "ratios": {}}
    if path.exists():
        before = _content(path)
        if is_calibration(before):
            raise ConfigError(
                f"save_as: {path} is a file of `dit-cache calibrate`, which this would replace; save under another name"
            )
        content["ratios"] = before.get("ratios", {})
    content["ratios"][key] = [round(float(ratio), 6) for ratio in ratios]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)  # whoever reads meanwhile sees the old file or the new one
    return path


def _numbers(values: object, where: str) -> tuple[float, ...]:
    given = list(values) if isinstance(values, (list, tuple)) else []
    if not given or not all(isinstance(each, (int, float)) and each > 0 for each in given):
        raise ConfigError(f"{where}: expected one number above 0 for each step, got {values!r}")
    return tuple(float(each) for each in given)
