"""What is asked for, a speed-up or a quality, and how near a setting comes to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dit_cache_backends.compare.measures import SAME_DB
from dit_cache_backends.compare.spread import ENDS, Spread, spread
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.tune.scores import Score

By = Literal["time", "blocks"]

MOSTLY = 0.8
"""A run of more of its blocks says little of what skipped ones cost."""


@dataclass(frozen=True)
class Aim:
    """A speed-up to be reached with the best quality, or a quality with the best speed-up."""

    speedup: float | None = None
    psnr: float | None = None
    by: str = "time"
    """What the speed-up is of: seconds of a whole call, or blocks."""
    of: str = "mean"
    """Which number of the PSNR counts, one of ``ENDS``."""

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.psnr is None):
            raise ConfigError(
                "give one of --speedup and --psnr: what is asked for; the other is made as good as it gets"
            )
        if self.speedup is not None and not self.speedup > 1:
            raise ConfigError(f"--speedup is more than 1, got {self.speedup:g}")
        if self.psnr is not None and not 0 < self.psnr <= SAME_DB:
            raise ConfigError(f"--psnr is more than 0 and at most {SAME_DB:g} dB, got {self.psnr:g}")
        for name, value, known in (("--by", self.by, ("time", "blocks")), ("--of", self.of, ENDS)):
            if value not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, got {value!r}")

    @property
    def text(self) -> str:
        """As on the command line."""
        goal = f"--psnr {self.psnr:g}" if self.speedup is None else f"--speedup {self.speedup:g}"
        return (
            goal
            + (f" --by {self.by}" if self.by != "time" else "")
            + (f" --of {self.of}" if self.of != "mean" else "")
        )

    def reached(self, result: Result) -> bool:
        """Whether a result keeps what is asked for."""
        if self.speedup is not None:
            return result.speedup >= self.speedup
        assert self.psnr is not None
        return result.quality >= self.psnr

    def excess(self, result: Result) -> float:
        """By how much a result does better than what is asked for: in parts of the speed-up, or in dB."""
        if self.speedup is not None:
            return result.speedup / self.speedup - 1
        assert self.psnr is not None
        return result.quality - self.psnr

    @property
    def near(self) -> float:
        """An excess that is not worth another drawing."""
        return 0.02 if self.speedup is not None else 0.25

    def rank(self, result: Result) -> tuple[bool, float, float]:
        """The larger the better: first what reaches the aim, by what is not asked for; else what comes nearest."""
        if not self.reached(result):
            return False, self.excess(result), 0.0
        other = result.quality if self.speedup is not None else result.speedup
        return True, other, self.excess(result)


@dataclass(frozen=True)
class Result:
    """What a setting comes to on some prompts."""

    psnr: Spread
    ssim: Spread
    share: float
    """Part of the dense run's blocks that run."""
    speedup: float
    """By what the aim says; by time it is reckoned from the blocks, and from what a skipped run costs."""
    quality: float
    """The number of the PSNR that the aim says."""
    prompts: int


class Times:
    """What a drawing should take, by its blocks and the fastest seen; on a busy machine single times are noise."""

    def __init__(self) -> None:
        self._dense: list[Score] = []
        self._others: dict[str, list[Score]] = {}

    def add(self, backend: str, score: Score) -> None:
        """Take a drawing into account; ``backend`` is empty for dense ones."""
        if backend:
            self._others.setdefault(backend, []).append(score)
        else:
            self._dense.append(score)

    def speedup(self, backend: str, share: float) -> float:
        """Seconds of the dense call over those of one that runs ``share`` of its blocks."""
        if not self._dense:
            return 1 / share if share else float("inf")
        outside, whole = self._seconds()
        return (outside + whole) / (outside + whole * (share + self._skipped(backend) * (1 - share)))

    def steps_for(self, speedup: float, steps: int) -> int:
        """The fewest steps of a dense run that takes as long as one that is so many times faster, or longer."""
        outside, whole = self._seconds()
        return rival_steps(((outside + whole) / speedup - outside) / whole, steps)

    def _seconds(self) -> tuple[float, float]:
        """Outside and within the transformer, in the fastest dense run."""
        return (
            min(score.seconds - score.transformer_seconds for score in self._dense),
            min(score.transformer_seconds for score in self._dense),
        )

    def _skipped(self, backend: str) -> float:
        """What a run in which all is skipped takes, as a part of the dense run; at least nothing."""
        _, whole = self._seconds()
        found = [
            (score.transformer_seconds / whole - share) / (1 - share)
            for score in self._others.get(backend, ())
            if (share := score.blocks_run / score.blocks) < MOSTLY
        ]
        return max(0.0, min(1.0, *found)) if found else 0.0


def rival_steps(part: float, steps: int) -> int:
    """Steps of the dense run that costs ``part`` of the whole one, or just more."""
    return max(1, min(steps - 1, math.ceil(round(part * steps, 6))))


def result_of(scores: Sequence[Score], names: Sequence[str], aim: Aim, times: Times, backend: str) -> Result:
    """What some drawings of one setting come to."""
    quality = spread("psnr", [score.psnr for score in scores], names)
    blocks = sum(score.blocks for score in scores)
    share = sum(score.blocks_run for score in scores) / blocks if blocks else 1.0
    by_blocks = 1 / share if share else float("inf")
    return Result(
        quality,
        spread("ssim", [score.ssim for score in scores], names),
        share,
        by_blocks if aim.by == "blocks" else times.speedup(backend, share),
        quality.of(aim.of),
        len(scores),
    )
