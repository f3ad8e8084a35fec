"""How far the outputs of a transformer move the latents is read off a run, whatever the scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.planning.gram import gram_of
from dit_cache_backends.planning.influence import influence
from dit_cache_backends.planning.recording import Recording
from dit_cache_backends.planning.rehearsal import Rehearsal
from tests.planning.rehearsals import prompts_of, tiny_trial

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 9


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def euler(times: np.ndarray, guidance: float | None) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Steps through random fields."""
    latents, after, outputs = drawn(0, 2, 30), [], []
    for step, size in enumerate(-np.diff(times)):
        fields = [drawn(10 * step + branch + 1, 2, 30) for branch in range(1 if guidance is None else 2)]
        moved = fields[0] if guidance is None else fields[1] + guidance * (fields[0] - fields[1])
        latents = latents - float(size) * moved
        after.append(latents)
        outputs.append(fields)
    return after, outputs


@pytest.mark.parametrize("guidance", [None, 1.5, 4.0])
def test_eulers_steps_and_the_guidance_are_found(guidance: float | None) -> None:
    times = np.linspace(1, 0, STEPS + 1) ** 2
    found = influence(*euler(times, guidance))
    sizes = -np.diff(times)
    # The latents before the first step are not shown; it is taken for as large as the second.
    sizes[0] = sizes[1]
    np.testing.assert_allclose(found.sizes, sizes / sizes.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.shares, [1] if guidance is None else [guidance, 1 - guidance], rtol=1e-4)


def test_a_step_that_also_scales_the_latents_is_understood() -> None:
    after, outputs = [drawn(0, 40)], [[drawn(1, 40)]]
    for step in range(1, STEPS):
        outputs.append([drawn(step + 1, 40)])
        after.append(0.9 * after[-1] - 0.1 * step * outputs[-1][0])
    found = influence(after, outputs)
    np.testing.assert_allclose(found.sizes[2:] / found.sizes[1], np.arange(2, STEPS), rtol=1e-3)


@pytest.mark.parametrize("wrong", ["unrelated", "other size", "not shown", "not finite", "changing branches"])
def test_where_the_outputs_do_not_explain_the_latents_all_count_alike(wrong: str) -> None:
    after, outputs = euler(np.linspace(1, 0, STEPS + 1), 2.0)
    if wrong == "unrelated":
        outputs = [[drawn(500 + step, 2, 30), drawn(600 + step, 2, 30)] for step in range(STEPS)]
    elif wrong == "other size":
        outputs = [[each[:1] for each in both] for both in outputs]
    elif wrong == "not shown":
        after = []
    elif wrong == "not finite":
        after[4] = after[4] * float("nan")
    else:
        outputs[3] = outputs[3][:1]
    found = influence(after, outputs)
    assert (found.sizes == 1).all()
    assert found.shares.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_the_guidance_of_a_pipeline_is_read_off_its_run(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def watched(latents: list[Tensor], outputs: list[list[Tensor]]) -> object:
        found = influence(latents, outputs)
        seen.append(found.shares)
        return found

    monkeypatch.setattr("dit_cache_backends.planning.gram.influence", watched)
    prompts = prompts_of("wan", 1)
    with tiny_trial("wan", guidance_scale=scale) as trial:
        Rehearsal(trial, prompts, STEPS).gram()
    np.testing.assert_allclose(seen[0], [scale, 1 - scale], rtol=0.02)


@pytest.mark.parametrize("together", [False, True])
def test_products_are_those_of_the_guided_residual(together: bool) -> None:
    """Of both branches with the shares that the guidance gives them, in calls of their own or one behind the other."""
    after, outputs = euler(np.linspace(1, 0, STEPS + 1), 3.0)
    residuals = [[drawn(900 + 2 * step + branch, 2, 7, 5) for branch in range(2)] for step in range(STEPS)]
    recording = Recording(steps=STEPS, first_steps={"transformer": 0}, latents_after=after)
    for branch in ["both"] if together else ["cond", "uncond"]:
        key = ("transformer", "blocks", 0, branch, 0)
        recording.main[key] = (0,)
        for step in range(STEPS):
            at = Step(step, STEPS, branch, step, STEPS)
            number = int(branch == "uncond")
            value = torch.cat(residuals[step]) if together else residuals[step][number]
            out = torch.cat(outputs[step]) if together else outputs[step][number]
            # The second stream is text, which does not count.
            recording.history[key].append((at, {0: value, 1: 100 * drawn(step, *value.shape)}))
            recording.outputs["transformer"].append((step, (out,)))
    found = gram_of(recording, 2)
    for prompt in range(2):
        guided = torch.stack(
            [(3 * cond - 2 * uncond)[prompt].flatten() for cond, uncond in residuals]
        ).double()
        products = (guided @ guided.T).numpy()
        np.testing.assert_allclose(
            found.products[prompt], products / products.diagonal().mean(), rtol=1e-3, atol=1e-3
        )
