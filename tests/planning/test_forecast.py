"""Fitted forecasts: as good as they can be, foreseen as they come out, and found without running the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_cache_backends.planning import Candidate, Rehearsal
from dit_cache_backends.planning.candidates import FITTED
from dit_cache_backends.planning.forecast import LASTS, OFF, fitted_weights, foreseen
from dit_cache_backends.planning.foresight import best_foreseen, foreseen_starts
from dit_cache_backends.planning.gram import Gram
from dit_cache_backends.planning.starts import starting_masks
from dit_cache_backends.strategies.presets import even_mask
from dit_cache_backends.trials import DENSE, Prompt, Setting, Trial
from tests.planning.rehearsals import prompts_of, tiny_trial

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 12
LENGTH = 40


def gram(residuals: np.ndarray, sizes: np.ndarray | None = None, begins: tuple[int, ...] = (0,)) -> Gram:
    """Of ``[prompts, steps, length]``."""
    products = residuals @ residuals.transpose(0, 2, 1)
    products /= products.diagonal(axis1=1, axis2=2).mean(axis=1)[:, None, None]
    return Gram(products, np.ones(residuals.shape[1]) if sizes is None else sizes, begins)


def smooth(seed: int, prompts: int = 2) -> np.ndarray:
    """Residuals that change slowly, each number as a sum of waves of its own."""
    rng = np.random.default_rng(seed)
    steps = np.arange(STEPS)[None, :, None]
    waves = [rng.normal(size=(prompts, 1, LENGTH)) * np.sin(steps * rate + rate) for rate in (0.1, 0.2, 0.35)]
    return rng.normal(size=(prompts, 1, LENGTH)) + sum(waves)


def masks(leading: int = 1) -> st.SearchStrategy[tuple[int, ...]]:
    free = STEPS - leading - 1
    digits = st.lists(st.integers(0, 1), min_size=free, max_size=free).filter(lambda each: 0 in each)
    return digits.map(lambda each: (*[1] * leading, *each, 1))


def gathered(residuals: np.ndarray, mask: tuple[int, ...], weights: dict[int, np.ndarray]) -> np.ndarray:
    """The error that a run gathers, by adding up vectors, step for step: ``[prompts, length]``."""
    error = np.zeros_like(residuals[:, 0])
    for step, digit in enumerate(mask):
        if digit:
            error = error * LASTS
        else:
            error = error + np.einsum("c,pcl->pl", weights[step], residuals) - residuals[:, step]
    return error


def rows(candidate: Candidate, found: Gram) -> dict[int, np.ndarray]:
    weights = fitted_weights(found, candidate)
    assert weights is not None
    result = {}
    for step, each in weights.items():
        computed = [place for place in range(step) if candidate.mask[place]][-len(each) :]
        result[step] = np.zeros(STEPS)
        result[step][computed] = each
    return result


@settings(max_examples=30, deadline=None)
@given(masks(), st.sampled_from([*FITTED]), st.integers(0, 5))
def test_every_skipped_step_has_the_weights_of_the_last_computed_ones(
    mask: tuple[int, ...], predictor: str, seed: int
) -> None:
    weights = fitted_weights(gram(smooth(seed)), Candidate(mask, predictor))
    assert weights is not None
    assert [*weights] == [step for step, digit in enumerate(mask) if not digit]
    for step, each in weights.items():
        assert len(each) == min(FITTED[predictor].keep, sum(mask[:step]))


def test_what_repeats_itself_is_foretold() -> None:
    """Residuals of two directions whose shares change as they like: any two of them make all the others."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(1, 2, LENGTH))
    angles = np.linspace(0, 1.2, STEPS)
    residuals = (
        np.cos(angles)[None, :, None] * directions[:, :1] + np.sin(angles)[None, :, None] * directions[:, 1:]
    )
    mask = (1, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1)
    found = rows(Candidate(mask, "fitted 3 0.5"), gram(residuals))
    for step in (7, 8, 10):
        forecast = np.einsum("c,pcl->pl", found[step], residuals)
        assert np.abs(forecast - residuals[:, step]).max() < 0.02 * np.abs(residuals).max()


@settings(max_examples=40, deadline=None)
@given(masks(2), st.integers(0, 9), st.integers(0, 9))
def test_no_other_weights_leave_less_of_the_gathered_error(
    mask: tuple[int, ...], seed: int, other: int
) -> None:
    """Of the first skipped step: nothing was gathered before it, so its own error is all there is."""
    residuals = smooth(seed)
    found = gram(residuals)
    step = mask.index(0)
    candidate = Candidate(mask, "fitted 3 0.5")
    weights = fitted_weights(found, candidate)
    assert weights is not None
    computed = list(range(step))[-3:]
    products = found.products.mean(axis=0)

    def cost(each: np.ndarray) -> float:
        off = np.zeros(STEPS)
        off[computed] = each
        off[step] -= 1
        newest = np.zeros(len(each))
        newest[-1] = 1
        ridge = OFF * products[computed, computed].mean()
        return float(off @ products @ off + ridge * np.square(each - newest).sum())

    best = cost(np.array(weights[step]))
    moved = np.random.default_rng(other).normal(size=len(computed)) * 0.05
    assert cost(np.array(weights[step]) + moved) >= best - 1e-9


def test_what_a_gap_missed_is_taken_back_after_it() -> None:
    """Fitted to its own step alone, the first forecast after the gap leaves more of what was gathered."""
    residuals = smooth(3)
    mask, after, fit = (1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1), 4, FITTED["fitted 3 0.7"]
    taking = rows(Candidate(mask, "fitted 3 0.7"), gram(residuals))
    own = np.zeros(STEPS)
    own[[0, 3]] = np.linalg.lstsq(
        residuals[:, [0, 3]].transpose(0, 2, 1).reshape(-1, 2), residuals[:, after].reshape(-1)
    )[0]
    before = gathered(residuals, (*mask[:3], *[1] * 9), taking) / LASTS**9 * fit.lasts
    left = [
        np.linalg.norm(before + np.einsum("c,pcl->pl", each, residuals) - residuals[:, after])
        for each in (taking[after], own)
    ]
    assert left[0] < 0.9 * left[1]


@settings(max_examples=30, deadline=None)
@given(masks(), st.sampled_from([*FITTED, "reuse"]), st.integers(0, 5))
def test_what_is_foreseen_is_the_error_that_vectors_add_up_to(
    mask: tuple[int, ...], predictor: str, seed: int
) -> None:
    residuals = smooth(seed)
    found = gram(residuals)
    candidate = Candidate(mask, predictor)
    if predictor == "reuse":
        weights = {}
        for step, digit in enumerate(mask):
            if not digit:
                weights[step] = np.zeros(STEPS)
                weights[step][max(place for place in range(step) if mask[place])] = 1
    else:
        weights = rows(candidate, found)
    scale = np.square(residuals).sum(axis=2).mean(axis=1)
    squares = np.square(gathered(residuals, mask, weights)).sum(axis=1) / scale
    noise = 0.0
    for step, digit in enumerate(mask):
        noise = noise * LASTS**2 if digit else noise + OFF * float(np.square(weights[step]).sum())
    expected = [-10 * math.log10(each + noise) for each in squares]
    quality = foreseen(found, candidate)
    assert quality.mean == pytest.approx(sum(expected) / len(expected), abs=0.05)
    assert quality.worst == pytest.approx(min(expected), abs=0.05)


def test_steps_that_move_the_latents_further_count_for_more() -> None:
    residuals = smooth(1)
    early, late = (1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1)
    growing = np.linspace(0.1, 2.0, STEPS)
    for sizes, sign in ((growing, 1), (growing[::-1], -1)):
        known = gram(residuals, sizes)
        even = gram(residuals)
        one, other = (
            foreseen(known, Candidate(mask, "reuse")).mean - foreseen(even, Candidate(mask, "reuse")).mean
            for mask in (early, late)
        )
        assert (one - other) * sign > 3


def test_nothing_is_made_of_another_experts_steps() -> None:
    found = gram(smooth(2), begins=(0, 6))
    weights = fitted_weights(found, Candidate((1, 1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1), "fitted 4 0.7"))
    assert weights is not None
    assert {step: len(each) for step, each in weights.items()} == {4: 4, 7: 1, 9: 2, 10: 2}


def test_the_first_step_of_an_expert_is_computed_whatever_the_mask_says() -> None:
    found = gram(smooth(2), begins=(0, 6))
    said = Candidate((1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0, 1), "fitted 3 0.5")
    ran = Candidate((1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1), "fitted 3 0.5")
    assert fitted_weights(found, said) == fitted_weights(found, ran)
    for predictor in ("fitted 3 0.5", "taylorseer 1", "dmd"):
        assert foreseen(found, Candidate(said.mask, predictor)) == foreseen(
            found, Candidate(ran.mask, predictor)
        )


def test_a_step_that_hardly_moves_the_latents_is_not_foretold_without_measure() -> None:
    """To take back all that was missed in so small a step would take weights as large as it is small."""
    mask = (1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1)
    sizes = np.ones(STEPS)
    plain = fitted_weights(gram(smooth(5), sizes.copy()), Candidate(mask, "fitted 3 0.7"))
    sizes[6] = 1e-6
    small = fitted_weights(gram(smooth(5), sizes), Candidate(mask, "fitted 3 0.7"))
    assert plain is not None
    assert small is not None
    assert max(map(abs, small[6])) < 12 * max(map(abs, plain[6]))


def test_numbers_that_are_not_finite_give_plain_reuse() -> None:
    residuals = smooth(6)
    residuals[:, 4] = np.inf
    with np.errstate(invalid="ignore"):
        products = residuals @ residuals.transpose(0, 2, 1)
    found = Gram(products, np.ones(STEPS), (0,))
    weights = fitted_weights(found, Candidate((1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1), "fitted 3 0.5"))
    assert weights is not None
    assert all(np.isfinite(each).all() for each in weights.values())
    assert weights[5] == (0.0, 0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(masks(), st.integers(2, 6), st.integers(0, 20))
def test_the_masks_that_are_foreseen_keep_to_the_guards(
    mask: tuple[int, ...], longest: int, seed: int
) -> None:
    liked = np.random.default_rng(seed).normal(size=STEPS)
    if max(map(len, "".join(map(str, mask)).split("1"))) > longest:
        return
    forced = {0, STEPS - 1, max(step for step in range(STEPS - 1) if mask[step])}

    def rank(each: tuple[int, ...]) -> float:
        return float(np.dot(liked, each))

    found = best_foreseen([mask], rank, forced, longest, 3)
    assert rank(found[0]) >= rank(mask)
    for each in found:
        assert sum(each) == sum(mask)
        assert all(each[step] for step in forced)
        assert max(map(len, "".join(map(str, each)).split("1"))) <= longest


def test_each_fitted_predictor_brings_its_starts() -> None:
    known = gram(smooth(4))
    mask = (1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1)
    found = foreseen_starts(
        {"even": mask},
        ["reuse", *FITTED],
        lambda candidate: foreseen(known, candidate).rank,
        {0, STEPS - 1},
        6,
    )
    assert {name.split(", ")[1] for name in found} == set(FITTED)
    for predictor in FITTED:
        best = Candidate(found[f"foreseen, {predictor}"], predictor)
        assert foreseen(known, best).rank >= foreseen(known, Candidate(mask, predictor)).rank


@pytest.mark.parametrize("name", ["flux", "qwen_image", "wan22", "sd3"])
def test_a_fitted_run_is_the_same_replayed_whole_and_as_step_plan_runs_it(name: str) -> None:
    with tiny_trial(name) as trial:
        prompts = prompts_of(name, 1)
        whole, replayed = (Rehearsal(trial, prompts, 9, replay=replay) for replay in (False, True))
        begins = whole.shape().begins
        mask = tuple(int(step in (0, 1, 2, 4, 7, 8) or step in begins) for step in range(9))
        candidate = Candidate(mask, "fitted 3 0.5")
        weights = fitted_weights(whole.gram(), candidate)
        assert weights is not None
        assert weights == fitted_weights(replayed.gram(), candidate)
        errors = replayed.errors(candidate)
        assert errors == whole.errors(candidate)
        assert errors != whole.errors(Candidate(mask, "reuse"))
        options = {"mask": list(mask), "weights": {str(step): list(each) for step, each in weights.items()}}
        dense, planned = (
            trial.draw(prompts[0], setting, steps=9).latents
            for setting in (DENSE, Setting("fitted", options, backend="step_plan"))
        )
    assert dense is not None
    assert planned is not None
    assert float((planned - dense).norm() / dense.norm()) == pytest.approx(errors[0], rel=1e-5)


def test_several_prompts_in_a_call_have_the_products_that_they_have_alone() -> None:
    with tiny_trial("flux") as trial:
        prompts = prompts_of("flux", 3)
        alone, together = (Rehearsal(trial, prompts, 9, batch=batch).gram() for batch in (1, 3))
    assert alone.products.shape == (3, 9, 9)
    np.testing.assert_allclose(alone.products, together.products, rtol=1e-3, atol=1e-4)
    assert np.abs(alone.products[0] - alone.products[1]).max() > 1e-3


def test_experts_have_nothing_in_common() -> None:
    with tiny_trial("wan22") as trial:
        found = Rehearsal(trial, prompts_of("wan22", 1), 9).gram()
    second = found.begins[1]
    assert not found.products[:, :second, second:].any()
    assert (found.products[:, 0, 1] != 0).all()


def test_a_plan_found_without_a_single_try_beats_even_steps_on_prompts_it_has_not_seen() -> None:
    from dit_cache_backends.demo import held_out_prompts

    steps, computed = 16, 6
    texts = held_out_prompts(8)
    with Trial("demo") as trial:
        known, others = (
            Rehearsal(trial, [Prompt(text, seed) for seed, text in enumerate(each, first)], steps, batch=4)
            for first, each in ((0, texts[:4]), (10, texts[4:]))
        )
        found, forced = known.gram(), {0, steps - 1}
        starts = starting_masks(steps, computed, forced, known.change(), 6)
        best = foreseen_starts(starts, ["fitted 3 0.5"], lambda each: foreseen(found, each).rank, forced, 6)
        plan = Candidate(best["foreseen, fitted 3 0.5"], "fitted 3 0.5")
        planned = others.errors(plan, fitted_weights(found, plan))
        for predictor in ("reuse", "taylorseer 1", "hermite 2", "newton 2"):
            even = others.errors(Candidate(tuple(even_mask(steps, computed, 2)), predictor))
            assert np.mean(planned) < 0.7 * np.mean(even), predictor
