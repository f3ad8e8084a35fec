"""What a search found, and the file that the plugin ``step_plan`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.planning.candidates import PREDICTORS, Candidate, Quality
from dit_cache_backends.trials import Provenance, Setting

if TYPE_CHECKING:
    from dit_cache_backends.calibrators.fitted import Weights

__all__ = ["FORMAT", "Plan", "Plans"]

FORMAT = "dit-cache-plan 1"
NEARNESS = {
    "latents": "the signal-to-noise ratio of the final latents",
    "pictures": "the PSNR of the pictures",
}


@dataclass(frozen=True)
class Plan:
    """The best that was found for one number of computed steps."""

    candidate: Candidate
    start: str
    """The placement that the search began with."""
    blocks: float
    """Part of the dense run's blocks that run, 0 to 1."""
    found: Quality
    """On the prompts it was found on."""
    fewer_steps: int
    """Denoising steps of the dense run that makes as many calls."""
    fewer_found: Quality
    """That run, on the same prompts."""
    held_out: Quality | None = None
    """On prompts that the search never saw; None where there were none."""
    fewer_held_out: Quality | None = None
    weights: Weights | None = None
    """Of its forecast, where that was fitted."""

    @property
    def beats_fewer_steps(self) -> bool:
        """Whether it is better than the dense run of fewer steps on prompts it has not seen, mean and worst."""
        if self.held_out is None or self.fewer_held_out is None:
            return False
        return self.held_out.exceeds(self.fewer_held_out)

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        computed = f"{self.candidate.computed} computed steps"
        rival = f"the dense run of {self.fewer_steps} steps"
        if self.held_out is None or self.fewer_held_out is None:
            return f"{computed}: not compared with {rival} on prompts it has not seen, since none were kept for it"
        numbers = f"{self.held_out} against {self.fewer_held_out} on prompts it has not seen, mean (worst)"
        if self.beats_fewer_steps:
            return f"{computed}: better than {rival}: {numbers}"
        parts = [
            name
            for name in ("mean", "worst")
            if getattr(self.held_out, name) > getattr(self.fewer_held_out, name)
        ]
        how = f"better than {rival} by the {parts[0]} alone" if parts else f"NOT better than {rival}"
        return f"{computed}: {how}: {numbers}. Take that run, or compute more steps."

    @property
    def predictor(self) -> dict[str, Any]:
        """The options of ``step_plan`` that say how skipped steps are filled."""
        if self.weights is not None:
            return {"weights": {str(step): list(each) for step, each in self.weights.items()}}
        return dict(PREDICTORS[self.candidate.predictor])

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the file."""
        return {
            "compute": self.candidate.computed,
            "mask": self.candidate.digits,
            "forecast": self.candidate.predictor,
            "predictor": self.predictor,
            "start": self.start,
            "blocks_run": round(self.blocks, 4),
            "found_on": _quality(self.found),
            "held_out": _quality(self.held_out),
            "fewer_steps": {
                "steps": self.fewer_steps,
                "found_on": _quality(self.fewer_found),
                "held_out": _quality(self.fewer_held_out),
            },
            "beats_fewer_steps": self.beats_fewer_steps,
        }


@dataclass(frozen=True)
class Plans:
    """The front of speed over quality: a plan for each number of computed steps, with where it comes from."""

    plans: Sequence[Plan]
    steps: int
    """Steps of the masks."""
    front: int
    back: int
    provenance: Provenance
    about: Mapping[str, Any]
    """The calls, the prompts and the search, for the file's reader."""

    @property
    def objective(self) -> str:
        """What was compared with the dense run."""
        return str(dict(self.about.get("search", {})).get("objective", "latents"))

    def __getitem__(self, computed: int) -> Plan:
        for plan in self.plans:
            if plan.candidate.computed == computed:
                return plan
        there = ", ".join(str(plan.candidate.computed) for plan in self.plans)
        raise ConfigError(f"there is no plan of {computed} computed steps; there are plans of {there}")

    def options(self, computed: int) -> dict[str, Any]:
        """The options of ``step_plan`` for one of the plans, without a file."""
        plan = self[computed]
        return {
            "mask": list(plan.candidate.mask),
            "Fn_compute_blocks": self.front,
            "Bn_compute_blocks": self.back,
            **plan.predictor,
        }

    def setting(self, computed: int, label: str = "") -> Setting:
        """One of the plans, to draw with."""
        name = label or f"planned, {computed} computed"
        return Setting(name, self.options(computed), backend="step_plan", family="planned")

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the file."""
        return {
            "format": FORMAT,
            "compute": self.plans[0].candidate.computed,
            "steps": self.steps,
            "Fn_compute_blocks": self.front,
            "Bn_compute_blocks": self.back,
            "plans": [plan.to_dict() for plan in self.plans],
            "provenance": self.provenance.to_dict(),
            **self.about,
        }

    def write(self, path: Path) -> None:
        """Write the file; whole or not at all.

        Raises:
            ConfigError: if it cannot be written.
        """
        text = (
            "# Found by `dit-cache plan`. Run it: --cache-backend step_plan --cache-config "
            f'\'{{"plan": "{path.name}"}}\'\n'
            "# `compute` says which of the plans that is; found_on and held_out tell how near runs come to the dense\n"
            f"# one, in dB: {NEARNESS[self.objective]}.\n"
            + yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=110)
        )
        beside = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise ConfigError(f"the plan cannot be written to {path}: {error}") from error


def _quality(quality: Quality | None) -> dict[str, float] | None:
    return (
        None if quality is None else {"mean_db": round(quality.mean, 2), "worst_db": round(quality.worst, 2)}
    )
