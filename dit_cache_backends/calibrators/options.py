"""The options that choose a predictor, for every strategy that skips spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from dit_cache_backends.calibrators.chebyshev import Chebyshev
from dit_cache_backends.calibrators.dmd import DMD, Precision
from dit_cache_backends.calibrators.foca import FoCa
from dit_cache_backends.calibrators.hermite import Hermite
from dit_cache_backends.calibrators.newton import Newton
from dit_cache_backends.calibrators.rules import calibrator_rules
from dit_cache_backends.calibrators.taylorseer import TaylorSeer
from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import Schema
from dit_cache_backends.engine.predictors import Of, Predictor, Reuse
from dit_cache_backends.engine.spans import Stream
from dit_cache_backends.errors import ConfigError

MOST_ORDER = 10
"""Of a polynomial. The tenth takes eleven observations, more than runs of 50 steps compute between their changes."""


@dataclass(frozen=True)
class CalibratorOptions:
    """How what is skipped is foretold. The ``Config`` of a strategy inherits these options.

    The names that cache-dit has are cache-dit's, and so are their defaults, but that the streams beside the denoised
    one always follow it unless told otherwise.
    """

    calibrator: str | None = option(
        None,
        choices=("none", "taylorseer", "foca", "dmd", "hermite", "chebyshev", "newton"),
        group="calibrator",
        help="How what is skipped is foretold; none: reused as it was. Null: what the enable_ options say, else none.",
    )
    enable_taylorseer: bool = option(False, group="calibrator", help="The same as calibrator: taylorseer.")
    enable_foca: bool = option(False, group="calibrator", help="The same as calibrator: foca.")
    enable_dmd: bool = option(False, group="calibrator", help="The same as calibrator: dmd.")
    enable_encoder_calibrator: bool | None = option(
        None,
        aliases=("enable_encoder_foca", "enable_encoder_dmd"),
        group="encoder calibrator",
        help="Whether the streams that are not the denoised one have the calibrator, too. Null: yes.",
    )
    enable_encoder_taylorseer: bool | None = option(
        None,
        group="encoder calibrator",
        help="The same for TaylorSeer; true without a calibrator gives TaylorSeer to those streams alone.",
    )
    taylorseer_cache_type: str = option(
        "residual",
        aliases=("calibrator_cache_type",),
        choices=("residual", "hidden_states"),
        help="With any calibrator: foretell what the blocks add, or what comes out of them.",
    )
    taylorseer_order: int = option(
        1, minimum=0, maximum=MOST_ORDER, help="Order of TaylorSeer's series; 0 is plain reuse."
    )
    dmd_history: int = option(6, minimum=4, help="Computed steps that DMD keeps and fits.")
    dmd_rank: int = option(
        0, minimum=0, help="Modes of DMD, at most dmd_history - 1; 0: as many as stand out of the noise."
    )
    dmd_ridge: float = option(1e-8, minimum=0, help="Added to the singular values that DMD divides by.")
    dmd_svd_precision: str = option(
        "medium",
        choices=("low", "medium", "high"),
        help="How DMD reads its history: every 17th number, inner products, or a QR decomposition.",
    )
    hermite_order: int = option(
        2, minimum=0, maximum=MOST_ORDER, help="Order of HiCache's series; 0 is plain reuse."
    )
    hermite_scale: float = option(
        0.5, exclusive_minimum=0, maximum=1, help="HiCache's scale; the smaller, the more damped."
    )
    chebyshev_degree: int = option(4, minimum=0, maximum=MOST_ORDER, help="Degree of Spectrum's polynomials.")
    chebyshev_ridge: float = option(0.1, exclusive_minimum=0, help="Spectrum's ridge.")
    chebyshev_window: int = option(8, minimum=1, help="Computed steps that Spectrum's fit keeps and sees.")
    chebyshev_anchored: bool = option(
        True, help="The ridge pulls the forecast to the newest value; false: to zero, as in Spectrum."
    )
    newton_order: int = option(
        1, minimum=0, maximum=MOST_ORDER, help="Degree of the polynomial through the last computed steps."
    )
    newton_start: int = option(
        3, minimum=0, help="Steps after its first computed one before Newton extrapolates."
    )

    def __post_init__(self) -> None:
        problems = self.calibrator_problems()
        if problems:
            raise ConfigError("; ".join(problems), problems)

    def calibrator_problems(self) -> list[str]:
        """What contradicts itself among these options, for a ``Config`` that has a ``__post_init__`` of its own."""
        asked = self._asked()
        chosen = self.calibrator_of(main=True)
        if len(set(asked.values())) > 1:
            return [f"{' and '.join(asked)} ask for different calibrators; give one of them"]
        problems = []
        if self.enable_encoder_taylorseer and asked and chosen != "taylorseer":
            problems.append(
                f"enable_encoder_taylorseer and {next(iter(asked))} ask for different calibrators; "
                "enable_encoder_calibrator is for every one of them"
            )
        if self.enable_encoder_calibrator and chosen == "none" and not self.enable_encoder_taylorseer:
            problems.append(
                "enable_encoder_calibrator: true has no calibrator to use; choose one by calibrator"
            )
        if (
            self.enable_encoder_calibrator is not None
            and self.enable_encoder_taylorseer is not None
            and self.enable_encoder_calibrator != self.enable_encoder_taylorseer
            and chosen in ("none", "taylorseer")
        ):
            problems.append(
                "enable_encoder_calibrator and enable_encoder_taylorseer contradict each other; give one of them"
            )
        return problems

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once."""
        return calibrator_rules()

    def calibrator_of(self, main: bool) -> str:
        """The calibrator of the denoised stream (``main``), or of the others; "none" where there is none."""
        chosen = next(iter(self._asked().values()), "none")
        if main:
            return chosen
        if chosen in ("none", "taylorseer") and self.enable_encoder_taylorseer is not None:
            return "taylorseer" if self.enable_encoder_taylorseer else "none"
        return "none" if self.enable_encoder_calibrator is False else chosen

    def _asked(self) -> dict[str, str]:
        """The options that ask for a calibrator, as a user gives them, each with the one it asks for."""
        asked = {} if self.calibrator is None else {f"calibrator: {self.calibrator}": self.calibrator}
        for name in ("taylorseer", "foca", "dmd"):
            if getattr(self, f"enable_{name}"):
                asked[f"enable_{name}"] = name
        return asked


def make_calibrator(options: CalibratorOptions, stream: Stream) -> Predictor:
    """A fresh predictor for one stream of one span, as ``options`` say."""
    of: Of = "output" if options.taylorseer_cache_type == "hidden_states" else "residual"
    kind = options.calibrator_of(stream.main)
    if kind == "none" or getattr(options, f"{kind}_order", 1) == 0:
        return Reuse()
    if kind == "foca":
        return FoCa(of)
    if kind == "dmd":
        precision = cast(Precision, options.dmd_svd_precision)
        return DMD(options.dmd_history, options.dmd_rank, options.dmd_ridge, precision, of)
    if kind == "hermite":
        return Hermite(options.hermite_order, options.hermite_scale, of)
    if kind == "chebyshev":
        return Chebyshev(
            options.chebyshev_degree,
            options.chebyshev_ridge,
            options.chebyshev_window,
            options.chebyshev_anchored,
            of,
        )
    if kind == "newton":
        return Newton(options.newton_order, options.newton_start, of)
    return TaylorSeer(options.taylorseer_order, of)
