"""``mag_cache``: MagCache (arXiv 2506.09045).

How much the residual of a model grows from one step to the next hardly depends on the prompt. So it is measured once,
and what reusing the residual of an earlier step costs is known before the run: the product of the ratios passed over,
less 1. No tensor is looked at, so no device is waited for, and every rank decides alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dit_cache_backends import (
    CalibratorOptions,
    Capabilities,
    Card,
    ConfigError,
    Decision,
    Gate,
    PartOptions,
    Place,
    Predictor,
    Probe,
    ProvenanceOptions,
    Span,
    SpanBackend,
    Step,
    StorageOptions,
    Stream,
    make_calibrator,
    option,
)
from dit_cache_backends.calibrate import Series
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    any_of,
    both_or_neither,
    given,
    never,
    option_is,
    refine,
    when,
)
from dit_cache_backends.search import PREDICTORS, Search, Threshold
from dit_cache_mag_cache.measuring import MeasuringGate
from dit_cache_mag_cache.ratios import (
    PUBLISHED,
    RatioSet,
    calibration_of,
    find_ratios,
    nearest,
    sets_for,
)

__all__ = [
    "HOSTS",
    "PUBLISHED",
    "MagCache",
    "MagCacheConfig",
    "RatioSet",
    "find_ratios",
    "nearest",
    "skipped_steps",
]

HOSTS = {
    "vllm_omni": (0.24, 5, 0.1),  # vLLM-Omni 0.30.0
    "diffusers": (0.06, 3, 0.2),  # diffusers 0.42.1, MagCacheConfig
    "official": (0.24, 6, 0.2),  # the authors' script for Wan 2.1, image to video
}
"""Threshold, most skips in a row (K), part of the run computed at its start: what each project has by default."""


@dataclass(frozen=True)
class MagCacheConfig(CalibratorOptions, PartOptions, ProvenanceOptions, StorageOptions):
    """The options of ``mag_cache``, under the names of diffusers; those of vLLM-Omni are taken, too."""

    host: str = option(
        "vllm_omni", choices=tuple(HOSTS), help="Whose defaults hold for the three options that are null."
    )
    threshold: float | None = option(
        None,
        aliases=("mag_threshold",),
        help="Skip while the errors foretold sum up to no more. 0 or less: never.",
    )
    max_skip_steps: int | None = option(
        None,
        aliases=("mag_max_skip_steps",),
        minimum=0,
        help="Skipped steps in a row at most (K in the paper).",
    )
    retention_ratio: float | None = option(
        None,
        aliases=("mag_retention_ratio",),
        minimum=0,
        maximum=1,
        help="The part of the run, at its start, that is computed.",
    )
    ratios: list[float] | str | None = option(
        None,
        aliases=("mag_ratios",),
        help="The ratios: one number a step, the name of a published or measured set, or a file of `dit-cache "
        "calibrate`. Null: the published set for the model.",
    )
    calibrate: bool = option(
        False,
        aliases=("mag_calibrate",),
        help="Compute every step, and measure the ratios instead of using them.",
    )
    save_as: str | None = option(
        None,
        help="What is measured is kept under this name, or in this JSON file; ratios takes it from there.",
    )

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of ``ratios``, and of ``calibrate`` with ``save_as``."""
        measured = option_is(("calibrate", "mag_calibrate"), {"const": True})
        ratios = any_of(
            {"type": ["string", "null"]},
            {"type": "array", "minItems": 1, "items": {"exclusiveMinimum": 0}},
        )
        return [
            *both_or_neither(measured, given("save_as", nothing={"type": "null"})),
            *(when(never(measured), refine(name, ratios)) for name in ("ratios", "mag_ratios")),
        ]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrate != (self.save_as is not None):
            raise ConfigError("calibrate and save_as go together: what is measured is kept under a name")
        if self.ratios is not None and not self.calibrate:
            find_ratios(self.ratios)

    def limits(self) -> tuple[float, int, float]:
        """Threshold, most skips in a row, and the part that is computed first."""
        host = HOSTS[self.host]
        return (
            host[0] if self.threshold is None else self.threshold,
            host[1] if self.max_skip_steps is None else self.max_skip_steps,
            host[2] if self.retention_ratio is None else self.retention_ratio,
        )


class MagCache(SpanBackend):
    """MagCache: ratios measured beforehand tell what skipping a step will cost."""

    name = "mag_cache"
    environment: ClassVar = ("DIT_CACHE_MAG_RATIOS",)
    Config = MagCacheConfig
    capabilities = Capabilities(rank_agreement=True)
    conformance: ClassVar = {
        "eager": {"ratios": [1.0], "threshold": 1.0, "max_skip_steps": 2, "retention_ratio": 0.0},
        "never": {"ratios": [1.0], "threshold": 0.0},
    }
    searches: ClassVar = (
        Search(
            "threshold",
            Threshold("threshold", 0.005, 2.0),
            {
                "predictor": PREDICTORS,
                "in a row": {f"{n} in a row": {"max_skip_steps": n} for n in (5, 3)},
                "start": {f"first {part:.0%} computed": {"retention_ratio": part} for part in (0.1, 0.2)},
            },
        ),
    )
    config: MagCacheConfig

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(0, depth)]

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        if self.config.calibrate:
            return
        if self.config.ratios is not None:
            found = calibration_of(self.config.ratios)
            if found is not None:
                check = self.config.provenance == "check"
                found.hold_for(self.name, transformer, card, pipeline, check)
            return
        sets = sets_for(card.transformer)
        if len(sets) == 1:
            return
        if sets:
            raise ConfigError(
                f"mag_cache: {card.transformer} is the class of several models with ratios of their own. Name those of "
                f"this one: ratios: {', '.join(sets[:-1])} or {sets[-1]}; or measure them: calibrate: true, save_as: "
                "NAME, then ratios: NAME."
            )
        known = sorted({each.transformer for each in PUBLISHED.values()})
        raise ConfigError(
            f"mag_cache: no ratios are published here for {card.transformer} (there are some for {', '.join(known)}). "
            "Measure them in one run, calibrate: true, save_as: NAME, then give ratios: NAME."
        )

    def gate(self, place: Place) -> Gate:
        if self.config.calibrate:
            return MeasuringGate(str(self.config.save_as), place)
        given = self.config.ratios
        if given is None:
            # prepare has made sure that there is one; a subclass of the model has the set of its base.
            given = next(
                sets_for(cls.__name__)[0] for cls in type(place.model()).__mro__ if sets_for(cls.__name__)
            )
        return MagGate(find_ratios(given).of(place.transformer, place.branch), self.config.limits(), place)

    def predictor(self, stream: Stream) -> Predictor:
        return make_calibrator(self.config, stream)

    def replay(self, series: Series) -> list[bool]:
        """Which steps of a recorded run it would compute.

        Raises:
            ConfigError: if the ratios depend on the model, or there are none for it.
        """
        if self.config.ratios is None:
            raise ConfigError(
                "mag_cache: name the ratios; a record does not tell which published set is the model's"
            )
        ratios = nearest(find_ratios(self.config.ratios).of(series.transformer, series.branch), len(series))
        skipped = skipped_steps(ratios, *self.config.limits())
        return [step not in skipped for step in range(len(series))]


def skipped_steps(ratios: Sequence[float], threshold: float, most: int, retention: float) -> frozenset[int]:
    """The steps that are skipped in a run of as many steps as there are ratios (arXiv 2506.09045, section 3.3).

    While steps are skipped the error foretold is ``|1 - product of the ratios since the last computed step|``, summed
    up over the steps. A threshold of 0 skips none, where diffusers would skip a step whose ratio is exactly 1.
    """
    skipped: set[int] = set()
    product, error, row = 1.0, 0.0, 0
    if threshold <= 0:
        return frozenset()
    for step in range(int(retention * len(ratios) + 0.5), len(ratios)):
        product *= ratios[step]
        error += abs(1.0 - product)
        row += 1
        if error <= threshold and row <= most and step > 0:
            skipped.add(step)
        else:
            product, error, row = 1.0, 0.0, 0
    return frozenset(skipped)


class MagGate(Gate):
    """Works the whole run out when its number of steps is known, at the first step."""

    def __init__(self, ratios: Sequence[float], limits: tuple[float, int, float], place: Place) -> None:
        self._ratios = ratios
        self._limits = limits
        self._place = place
        self._steps: frozenset[int] | None = None

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(step.index not in self._skipped(step), "ratios")

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if self._steps is None:
            self._steps = self._skipped(step)
            if step.total is None:
                self._place.report(
                    "steps_unknown",
                    f"{self._place.transformer}: how many steps the run has is not known, so the ratios were taken for "
                    f"{len(self._ratios)}. Tell it: backend.refresh(pipeline, steps).",
                )

    def _skipped(self, step: Step) -> frozenset[int]:
        if self._steps is not None:
            return self._steps
        total = step.total or len(self._ratios)
        return skipped_steps(nearest(self._ratios, total), *self._limits)
