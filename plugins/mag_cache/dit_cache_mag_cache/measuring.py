"""``calibrate: true``: the ratios of one run, measured while it computes every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_cache_backends import Decision, Gate, Place, Probe, Step
from dit_cache_mag_cache.ratios import save_ratios


class MeasuringGate(Gate):
    """Computes every step, and writes the ratios down when the last of its transformer is made."""

    def __init__(self, name: str, place: Place) -> None:
        self._name = name
        self._place = place
        # A model whose blocks form several stacks is measured at the first.
        self._leads = place.shared.setdefault("mag_cache.leader", place.stack) == place.stack
        self._sizes: Tensor | None = None
        self._ratios: list[Tensor] = []

    def should_run(self, step: Step, probe: Probe) -> Decision:
        return Decision(True, "calibration")  # with store=False it would not be told of the steps that follow

    def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
        if not self._leads or probe.exit is None:
            return
        entry, out = probe.streams[0], probe.exit[0]
        if entry is None or out is None:
            return
        sizes = torch.linalg.vector_norm((out - entry).float(), dim=-1)
        before = sizes if self._sizes is None else self._sizes
        self._ratios.append((sizes / (before + 1e-8)).mean() if before is not sizes else torch.ones(()))
        self._sizes = sizes
        self._finish(step)

    def _finish(self, step: Step) -> None:
        where, model = self._place, self._place.model()
        if step.total is None:
            where.report(
                "steps_unknown",
                f"{where.transformer}: how many steps the run has is not known, so no ratios are written. Tell it: "
                "backend.refresh(pipeline, steps).",
            )
        elif step.index == step.total - 1:
            ratios = [float(ratio) for ratio in self._ratios]
            label: Any = type(model).__name__
            path = save_ratios(self._name, label, f"{where.transformer}:{where.branch}", ratios)
            where.report(
                "ratios_written", f"{where.transformer}:{where.branch}: {len(ratios)} ratios, in {path}."
            )
