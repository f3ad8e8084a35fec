"""How far the outputs of a transformer move the latents is read off a run, whatever the scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_cache_backends.planning.gram import gram_of
from dit_cache_backends.planning.influence import influence
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


def test_products_are_those_of_the_guided_residual() -> None:
    """Of both branches with the shares that the guidance gives them, not of each for itself."""
    with tiny_trial("wan", guidance_scale=3.0) as trial:
        rehearsal = Rehearsal(trial, prompts_of("wan", 1), STEPS)
        found = rehearsal.gram()
        recording = rehearsal._dense(0)
    keys = sorted(recording.history, key=lambda key: key[3] != "cond")
    assert [key[3] for key in keys] == ["cond", "uncond"]
    first, second = ([shown[0].flatten().double() for _, shown in recording.history[key]] for key in keys)
    guided = torch.stack([3 * one - 2 * other for one, other in zip(first, second, strict=True)])
    products = (guided @ guided.T).numpy()
    products /= products.diagonal().mean()
    kept = len(products)
    np.testing.assert_allclose(found.products[0, :kept, :kept], products, rtol=0.1, atol=0.02)
    assert gram_of(recording, 1).products.shape == (1, STEPS, STEPS)
