"""Flow matching of the demo's transformer, as FLUX: the target is noise minus data, the time is the noise's share.

At the end guidance is distilled into it (Meng et al., arXiv 2210.03142), as FLUX.1-dev was made: a plain call learns
to give what a guided one of two calls gave.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BATCH = 32
EMPTY = 0.1  # share of sentences left empty, so that true_cfg_scale has something to guide away from
WARM_UP = 200  # steps
EMA = 0.998
# Steps and highest learning rate, each one cosine.
PHASES: tuple[tuple[int, float], ...] = ((5000, 1e-3), (1400, 4e-4), (900, 2.5e-4))
GUIDANCE = 2.0  # the true_cfg_scale that is distilled
GUIDED_PHASES: tuple[tuple[int, float], ...] = ((900, 3e-4),)


def learning_rate(step: int, phases: tuple[tuple[int, float], ...]) -> float:
    """Warm-up in the first phase, then one cosine per phase down to a fiftieth of its highest rate."""
    first = 0
    for steps, peak in phases:
        if step < first + steps:
            share = (step - first) / steps
            warm = min(1.0, (step + 1) / WARM_UP)
            return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        first += steps
    return 0.0


def times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Logit-normal times in (0, 1), one from each of `count` equally likely parts: the loss varies less."""
    uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal: torch.Tensor = torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4))
    return normal.sigmoid()


def velocity(
    model: Any, mixed: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """What the transformer makes of packed latents `mixed` (n, side * side, 16) at times `t` (n,), in their shape."""
    side = math.isqrt(mixed.shape[1])
    places = torch.zeros(side, side, 3, device=mixed.device)
    places[..., 1] += torch.arange(side, device=mixed.device)[:, None]
    places[..., 2] += torch.arange(side, device=mixed.device)[None, :]
    found: torch.Tensor = model(
        hidden_states=mixed,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        timestep=t,
        img_ids=places.reshape(-1, 3),
        txt_ids=torch.zeros(tokens.shape[1], 3, device=mixed.device),
        return_dict=False,
    )[0]
    return found


class Run:
    """One training run: a transformer, its average, the optimizer and how far they are; kept in `file`."""

    def __init__(
        self,
        model: Any,
        file: Path,
        device: str,
        phases: tuple[tuple[int, float], ...],
        teacher: Any = None,
    ) -> None:
        """With a `teacher`, a transformer trained before, the target is its guided velocity instead of the data's."""
        self.model, self.file, self.device, self.phases = model.to(device).train(), file, device, phases
        self.teacher = teacher
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        weights = model.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self.step, self.seconds = 0, 0.0
        if file.exists():
            state = torch.load(file, map_location=device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Writes everything needed to go on, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        written = self.file.with_suffix(".new")
        torch.save(state, written)
        written.replace(self.file)

    def loss(
        self,
        data: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        empty: tuple[torch.Tensor, torch.Tensor],
        seed: int,
    ) -> torch.Tensor:
        """Mean squared error of the velocity; `data` (n, 64, 16) packed latents, text as `assembly.embed`."""
        generator = torch.Generator().manual_seed(seed)
        t = times(len(data), generator).to(self.device)
        noise = torch.randn(data.shape, generator=generator).to(self.device)
        share = t.view(-1, 1, 1)
        mixed = (1 - share) * data + share * noise
        target = noise - data if self.teacher is None else self._guided(mixed, t, text, empty)
        return (velocity(self.model, mixed, t, *text) - target).square().mean()

    @torch.no_grad()
    def _guided(
        self,
        mixed: torch.Tensor,
        t: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor],
        empty: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        tokens, pooled = (torch.cat([e.expand_as(x), x]) for e, x in zip(empty, text, strict=True))
        without, given = velocity(
            self.teacher, torch.cat([mixed, mixed]), torch.cat([t, t]), tokens, pooled
        ).chunk(2)
        return without + GUIDANCE * (given - without)

    def train(
        self,
        latents: torch.Tensor,
        sentence: torch.Tensor,
        tokens: torch.Tensor,
        pooled: torch.Tensor,
        every: Callable[[Run], None],
        log: Callable[[str], None] = print,
    ) -> None:
        """Runs to the end of the phases.

        `latents` (n, 64, 16); `sentence` (n,) is each picture's row in `tokens` and `pooled`, whose row 0 is the
        empty sentence. `every` is called after each 250 steps, with the run saved.
        """
        total = sum(steps for steps, _ in self.phases)
        first, mean_loss, began = self.step, 0.0, time.perf_counter() - self.seconds
        while self.step < total:
            generator = torch.Generator().manual_seed(self.step)
            chosen = torch.randint(len(latents), (BATCH,), generator=generator)
            rows = torch.where(torch.rand(BATCH, generator=generator) < EMPTY, 0, sentence[chosen])
            text = tokens[rows].to(self.device), pooled[rows].to(self.device)
            empty = tokens[:1].to(self.device), pooled[:1].to(self.device)
            loss = self.loss(latents[chosen].to(self.device), text, empty, seed=self.step + 1_000_000)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.phases)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(EMA, self.step / (self.step + 9))
            with torch.no_grad():
                new = [p.detach() for p in self.model.parameters()]
                torch._foreach_lerp_(list(self.average.parameters()), new, 1 - keep)
            weight = 1 / min(50, self.step - first)
            mean_loss += weight * (float(loss.detach()) - mean_loss)
            self.seconds = time.perf_counter() - began
            if self.step % 25 == 0:
                log(f"step {self.step}/{total} loss {mean_loss:.4f} {self.seconds:.0f} s")
            if self.step % 250 == 0 or self.step == total:
                self.save()
                every(self)
