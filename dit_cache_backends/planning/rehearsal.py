"""Runs of some prompts under a plan, each compared with the dense run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.hosts.batching import fit_together, joined
from dit_cache_backends.hosts.calls import arguments_of, pictures_of
from dit_cache_backends.planning.candidates import FITTED, PREDICTORS, Candidate
from dit_cache_backends.planning.forecast import fitted_weights
from dit_cache_backends.planning.gram import Gram, first_tensor, gram_of
from dit_cache_backends.planning.recording import Recorder, Recording
from dit_cache_backends.planning.replay import Replay

if TYPE_CHECKING:
    from dit_cache_backends.calibrators.fitted import Weights
    from dit_cache_backends.trials import Prompt, Trial

__all__ = ["Rehearsal", "Shape"]


class Rehearsal:
    """Draws some prompts under one plan after the other, up to the final latents.

    A plan decides by the step alone, so several prompts can be drawn in one call: each gets what it gets alone, up to
    the rounding of another batch size. The dense run is recorded at the first use, and its recording stands in for the
    transformer before the first skipped step.

    Args:
        trial: the model, and the arguments of its calls.
        prompts: what to draw.
        steps: denoising steps, as the pipeline is told.
        batch: prompts in one call of the pipeline.
        front: first blocks of each stack that always run.
        back: last blocks of each stack that always run.
        replay: whether to record; the recording holds what the blocks add at every step, in the memory of the CPU.
        pictures: compare the pictures instead of the final latents, which takes a decoding of each run.
    """

    def __init__(
        self,
        trial: Trial,
        prompts: Sequence[Prompt],
        steps: int,
        batch: int = 1,
        front: int = 0,
        back: int = 0,
        replay: bool = True,
        pictures: bool = False,
    ) -> None:
        self.trial = trial
        self.prompts = list(prompts)
        self.steps = steps
        self._layout = {"Fn_compute_blocks": front, "Bn_compute_blocks": back}
        self._replays = replay
        self._pictures = pictures
        self._batches = list(self._batched(batch))
        self._recordings: list[Recording | None] = [None] * len(self._batches)
        self._grams: list[Gram | None] = [None] * len(self._batches)

    def check(self) -> None:
        """Raise what a run would raise about the blocks that are kept running, without one."""
        for module in self.trial.transformers.values():
            Replay(self._layout, Recording(), ()).check(module)

    def shape(self) -> Shape:
        """What the run is like: its steps, and where each transformer begins. Draws the first batch dense."""
        recording = self._dense(0)
        return Shape(recording.steps, tuple(sorted(set(recording.first_steps.values()))))

    def gram(self) -> Gram:
        """The Gram matrices of all prompts, of which fitted forecasts are made. Draws the dense runs."""
        found = []
        for number in range(len(self._batches)):
            self._dense(number)
            found.append(self._grams[number])
        return Gram.joined([each for each in found if each is not None])

    def errors(self, candidate: Candidate, weights: Weights | None = None) -> tuple[float, ...]:
        """For each prompt ``|x - dense| / |dense|`` of the final latents, by the 2-norm.

        Of pictures the root mean square of the difference, on the scale of 0 to 1: as decibels it is their PSNR.

        Args:
            candidate: the plan.
            weights: where its predictor is fitted; unless given, those that the Gram matrices of these prompts give.
        """
        if candidate.predictor in FITTED and weights is None:
            weights = fitted_weights(self.gram(), candidate)
        found: list[float] = []
        for number in range(len(self._batches)):
            recording = self._dense(number)
            live = candidate.mask.index(0) - 1 if 0 in candidate.mask else len(candidate.mask)
            replay = Replay(
                {**PREDICTORS.get(candidate.predictor, {}), **self._layout},
                recording,
                candidate.mask,
                max(live, 0) if self._replays else 0,
                weights,
            )
            with _enabled(replay, self.trial.pipeline), replay.around(self.trial.transformers):
                found += self._apart(recording, self._latents(number, self.steps), number)
        return tuple(found)

    def fewer_steps(self, computed: int) -> tuple[int, tuple[float, ...]]:
        """The dense run that makes ``computed`` calls of each branch, or the next more that there is.

        Returns:
            Its denoising steps as the pipeline is told them, and the error of each prompt.
        """
        total = self._dense(0).steps
        steps = min(max(1, -(-self.steps * computed // total)), self.steps)
        while steps < self.steps and self._evaluations(steps) < computed:
            steps += 1
        found: list[float] = []
        for number in range(len(self._batches)):
            found += self._apart(self._dense(number), self._latents(number, steps), number)
        return steps, tuple(found)

    def _evaluations(self, steps: int) -> int:
        """Model evaluations of a run of so many steps; told by the scheduler where it has more than one a step."""
        if self._dense(0).steps == self.steps:
            return steps
        # A scheduler of second order: 2 * steps - 1.
        return round(steps * (self._dense(0).steps + 1) / self.steps) - 1

    def change(self) -> list[float]:
        """How much what the transformers give changes from each step to the next, relative; the first is 0.

        Of the first prompts and the first branch.
        """
        recording = self._dense(0)
        found = [0.0] * recording.steps
        for calls in recording.outputs.values():
            before: Tensor | None = None
            seen: set[int] = set()
            for step, out in calls:
                if step is None or step in seen:
                    continue
                seen.add(step)
                now = first_tensor(out)
                if before is not None and now is not None and now.shape == before.shape:
                    found[step] = float((now - before).float().abs().sum() / before.float().abs().sum())
                before = now
        return found

    def blocks_run(self, mask: Sequence[int]) -> float:
        """The part of the dense run's blocks that a mask runs, 0 to 1."""
        kept = sum(self._layout.values())
        rows = self._dense(0).rows
        return sum(blocks if mask[step] else kept for step, blocks in rows) / sum(
            blocks for _, blocks in rows
        )

    def _batched(self, size: int) -> Iterator[list[Prompt]]:
        """The prompts in order, those together that can share a call."""
        group: list[Prompt] = []
        for prompt in self.prompts:
            if group and (len(group) == size or not fit_together(self._call(group[0]), self._call(prompt))):
                yield group
                group = []
            group.append(prompt)
        if group:
            yield group

    def _call(self, prompt: Prompt, steps: int | None = None) -> dict[str, Any]:
        known = arguments_of(self.trial.pipeline)
        call = {**getattr(self.trial.pipeline, "call_defaults", {}), **self.trial.call, **prompt.call}
        if "prompt" in known and "prompt_embeds" not in call:
            call["prompt"] = prompt.text
        if "output_type" in known:  # where latents are compared, nothing has to be decoded
            call["output_type"] = "np" if self._pictures else "latent"
        call["generator"] = torch.Generator().manual_seed(prompt.seed)
        call["num_inference_steps"] = self.steps if steps is None else steps
        return call

    def _latents(self, number: int, steps: int, after: list[Tensor] | None = None) -> Tensor:
        """The final latents (or pictures) of a batch, ``[prompts, ...]``, on the CPU in float32.

        Those after each step are put into ``after``, as far as the pipeline shows them.
        """
        pipeline = self.trial.pipeline
        call = joined([self._call(prompt, steps) for prompt in self._batches[number]])
        shown: dict[str, Any] = {}
        if "callback_on_step_end" in arguments_of(pipeline):

            def step_made(_: Any, __: int, ___: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                shown.update(tensors)
                if after is not None and isinstance(tensors.get("latents"), Tensor):
                    after.append(tensors["latents"].detach().to("cpu", torch.float32, copy=True))
                return tensors

            call["callback_on_step_end"] = step_made
        bar = dict(getattr(pipeline, "_progress_bar_config", None) or {})
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(**{**bar, "disable": True})
        try:
            result = pipeline(**call)
        finally:
            if hasattr(pipeline, "set_progress_bar_config"):
                pipeline.set_progress_bar_config(**bar)
        if self._pictures:
            pictures = [torch.as_tensor(np.asarray(each)) for each in pictures_of(result)[0]]
            return torch.stack(pictures).float().mul(255).round().div(255)  # as they are saved
        latents = shown.get("latents")
        if not isinstance(latents, Tensor):
            latents = result[0] if isinstance(result, tuple) else _tensor(pictures_of(result)[0])
        if not isinstance(latents, Tensor):
            raise ConfigError(
                f"{type(pipeline).__name__} shows no latents: it has no callback_on_step_end, and with "
                "output_type='latent' it gave something else. A plan cannot be found for it."
            )
        return latents.detach().to("cpu", torch.float32)

    def _dense(self, number: int) -> Recording:
        found = self._recordings[number]
        if found is None:
            recorder = Recorder(self._layout)
            with _enabled(recorder, self.trial.pipeline), recorder.around(self.trial.transformers):
                latents = self._latents(number, self.steps, recorder.recording.latents_after)
                rows = recorder.summary().rows
            found = recorder.recording
            found.latents = latents
            found.rows = [(row.step, row.blocks_run) for row in rows]
            if not found.steps:
                raise ConfigError(
                    f"the blocks of {type(self.trial.pipeline).__name__} were not seen to run, so nothing of it can be "
                    "planned."
                )
            self._grams[number] = gram_of(found, len(self._batches[number]))
            found.latents_after.clear()
            if not self._replays:
                found.outputs.clear()
                found.history.clear()
            self._recordings[number] = found
        return found

    def _apart(self, recording: Recording, latents: Tensor, number: int) -> list[float]:
        dense, count = recording.latents, len(self._batches[number])
        if dense is None or dense.shape != latents.shape:
            raise ConfigError("the final latents have another shape than those of the dense run")
        if count == 1 and not self._pictures:
            dense, latents = dense[None], latents[None]
        elif latents.shape[0] != count:
            raise ConfigError(
                f"{count} prompts in one call gave latents of the shape {tuple(latents.shape)}, of which nobody knows "
                "whose they are. Draw the prompts one by one: batch 1."
            )
        difference = (latents - dense).flatten(1)
        if self._pictures:
            return [float(value) for value in difference.square().mean(dim=1).sqrt()]
        return [float(value) for value in difference.norm(dim=1) / dense.flatten(1).norm(dim=1)]


class Shape:
    """What a run is like."""

    def __init__(self, steps: int, begins: tuple[int, ...]) -> None:
        self.steps = steps
        """Steps of a mask."""
        self.begins = begins
        """Steps at which a transformer begins, which has nothing to skip with then."""


@contextmanager
def _enabled(backend: Recorder | Replay, pipeline: Any) -> Iterator[None]:
    backend.enable(pipeline)
    try:
        yield
    finally:
        backend.disable(pipeline)


def _tensor(pictures: Any) -> Tensor | None:
    if isinstance(pictures, Tensor):
        return pictures
    if pictures and all(isinstance(each, Tensor) for each in pictures):
        return torch.stack(list(pictures))
    return None
