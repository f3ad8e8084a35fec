"""What was fitted to a record, as a file that backends take: coefficients, ratios, rates, and what thresholds do."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import nn

from dit_cache_backends.calibrate.curve_fit import CurveFit
from dit_cache_backends.calibrate.origin import Origin
from dit_cache_backends.calibrate.sections import (
    curve_from,
    curve_to,
    ratios_from,
    ratios_to,
    steps_from,
    steps_to,
)
from dit_cache_backends.calibrate.step_fit import RatioFit, StepFit
from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.models.card import Card
from dit_cache_backends.pipelines import name_of
from dit_cache_backends.strategies.tea_cache_coefficients import CoefficientSet
from dit_cache_backends.strategies.tea_cache_curves import Polynomial

T = TypeVar("T")

VERSION = 1

HEAD = """\
# Made by `dit-cache calibrate`. tea_cache takes it as coefficients, mag_cache as ratios.
"""


@dataclass(frozen=True)
class Threshold:
    """What a threshold does on the recorded runs, without the errors that skipping itself brings."""

    value: float
    computed: float
    """Mean number of computed steps of a run."""
    speedup: float
    """Steps of a run over computed ones."""


@dataclass(frozen=True)
class Calibration:
    """A calibration, as it is in its file."""

    origin: Origin
    curves: Mapping[str, CurveFit]
    """TeaCache's, by transformer."""
    ratios: Mapping[str, RatioFit]
    """MagCache's, by ``transformer:branch``."""
    rates: Mapping[str, StepFit]
    """EasyCache's, by ``transformer:branch``. For its reader: ``easy_cache`` measures its own."""
    left_out: Mapping[str, Mapping[str, str]]
    """By strategy and transformer: why there is nothing for it."""
    thresholds: Mapping[str, tuple[Threshold, ...]] = field(default_factory=dict)
    """By strategy, from the lowest speed-up on."""
    source: str = ""
    """The file that it was read from."""

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return self.source or f"the calibration of {self.origin.provenance.model or 'a model'}"

    def coefficients_of(self, transformer: str) -> CoefficientSet:
        """What ``tea_cache`` takes for a transformer.

        Raises:
            ConfigError: if there is none, with the reason.
        """
        fit = self._of("tea_cache", self.curves, transformer, transformer)
        used, curve = fit.used, fit.used.curve
        lowest = [(each.value, f"{each.speedup:.2f}x") for each in self.thresholds.get("tea_cache", ())]
        return CoefficientSet(
            values=curve.coefficients if isinstance(curve, Polynomial) else (),
            model=self.origin.provenance.model or "the model at hand",
            source=self.label,
            thresholds=tuple(lowest),
            signal=fit.signal,
            x_range=fit.x_range,
            r2=used.r2,
            curve=curve,
            measured=True,
        )

    def ratios_of(self, transformer: str, branch: str) -> RatioFit:
        """What ``mag_cache`` takes for a branch of a transformer.

        Raises:
            ConfigError: if there is none, with the reason.
        """
        return self._of("mag_cache", self.ratios, f"{transformer}:{branch}", transformer)

    def hold_for(
        self, strategy: str, transformer: nn.Module, card: Card, pipeline: object, check: bool = True
    ) -> None:
        """Refuse a transformer that has nothing here and, with ``check``, a model or scheduler that was not measured.

        ``Origin.mismatches`` says what is compared.

        Raises:
            ConfigError: naming each difference.
        """
        name = name_of(transformer, pipeline)
        table: Mapping[str, object] = {
            "tea_cache": self.curves,
            "mag_cache": self.ratios,
        }[strategy]
        if not any(key.partition(":")[0] == name for key in table):
            self._of(strategy, table, name, name)
        differences = self.origin.mismatches(name, transformer, card, pipeline) if check else []
        if differences:
            raise ConfigError(
                f"{strategy}: {self.label} does not hold here: {'; '.join(differences)}. Calibrate this model with "
                "this scheduler (`dit-cache calibrate`), or take the file all the same: provenance: ignore.",
                differences,
            )

    def write(self, path: Path | str) -> Path:
        """Write the file: JSON where its name ends so, else YAML.

        Raises:
            ConfigError: if it cannot be written.
        """
        path = Path(path).expanduser()
        data = self.to_dict()
        if path.suffix.lower() == ".json":
            text = json.dumps(data, indent=1) + "\n"
        else:
            text = HEAD + yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f"{path.name}.{os.getpid()}")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise ConfigError(f"the calibration cannot be written: {error}") from error
        return path

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "calibration": VERSION,
            "measured": self.origin.to_dict(),
            "computed_steps": {
                strategy: [
                    {"threshold": each.value, "steps": each.computed, "speedup": each.speedup}
                    for each in listed
                ]
                for strategy, listed in self.thresholds.items()
            },
            "tea_cache": {name: curve_to(fit) for name, fit in self.curves.items()},
            "mag_cache": {name: ratios_to(fit) for name, fit in self.ratios.items()},
            "easy_cache": {name: steps_to(fit, "rates") for name, fit in self.rates.items()},
            "left_out": {strategy: dict(reasons) for strategy, reasons in self.left_out.items()},
        }

    def _of(self, strategy: str, table: Mapping[str, T], key: str, transformer: str) -> T:
        if key in table:
            return table[key]
        reasons = self.left_out.get(strategy, {})
        why = reasons.get(key) or reasons.get(transformer)
        if why is None and transformer == key:
            why = next((why for name, why in reasons.items() if name.partition(":")[0] == key), None)
        if why is None:
            known = ", ".join(table) or "nothing"
            why = (
                f"it has {known}, and nothing for {key}.{near(key, table)} Calibrate as the model is run now"
            )
        raise ConfigError(f"{strategy}: {self.label} has nothing for {key}: {why}")


def read_calibration(path: Path | str) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigError: if it cannot be read, is of another version, or no calibration.
    """
    where = Path(path).expanduser()
    try:
        known = where.stat()
    except OSError as error:
        raise ConfigError(f"the file {where} cannot be read: {error}") from error
    return _read(where, known.st_mtime_ns, known.st_size)


@functools.lru_cache(maxsize=8)
def _read(where: Path, changed: int, size: int) -> Calibration:
    """Gates ask for it at every generation, and a file is read again only where it is another one."""
    data = read_data(where)
    if not is_calibration(data):
        raise ConfigError(f"{where} is no calibration; `dit-cache calibrate MODEL --prompts FILE` makes one")
    if data["calibration"] != VERSION:
        raise ConfigError(
            f"{where} is a calibration of version {data['calibration']!r}; this release reads version {VERSION}. "
            "Calibrate anew from the record, or use the release that wrote it."
        )
    try:
        return Calibration(
            origin=Origin.from_dict(data.get("measured"), str(where)),
            curves={str(name): curve_from(each) for name, each in data["tea_cache"].items()},
            ratios={str(name): ratios_from(each) for name, each in data["mag_cache"].items()},
            rates={str(name): steps_from(each, "rates") for name, each in data["easy_cache"].items()},
            left_out={str(name): dict(reasons) for name, reasons in data["left_out"].items()},
            thresholds={
                str(name): tuple(
                    Threshold(float(each["threshold"]), float(each["steps"]), float(each["speedup"]))
                    for each in listed
                )
                for name, listed in data["computed_steps"].items()
            },
            source=str(where),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: this part of the calibration cannot be read: {type(error).__name__} {error}"
        ) from error


def read_data(path: Path) -> Any:
    """What is in a JSON or YAML file.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as {path.suffix}: {error}") from error


def is_calibration(data: object) -> bool:
    """Whether a file's data is a calibration, of whatever version."""
    return isinstance(data, Mapping) and "calibration" in data
