"""The filter against one made by hand, decisions as the formula has them, and as diffusers' own has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from dit_cache_sea_cache import READINGS, SeaCache, signal_part
from torch import Tensor, nn

from dit_cache_backends import ConfigError, SpanBackend, enable_cache
from dit_cache_conformance.counting import counted
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

STEPS = 16
GRIDS = {
    "flux": (4, 4),
    "qwen_image": (1, 4, 4),
    "ltx_video": (2, 4, 4),
    "sd3": (8, 8),
    "wan": (2, 8, 8),
    "hunyuan_video": (2, 8, 8),
}
"""The tiny models that can be read, and the grid of their latent."""


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(name: str, still: bool = False) -> list[dict[str, Any]]:
    """A run whose latents drift unevenly."""
    run = []
    for step in range(STEPS):
        arguments = transformer_inputs(name, step=0 if still else step, total=STEPS)
        first, drift = (transformer_inputs(name, step=at, total=STEPS)["hidden_states"] for at in (0, 1))
        if not still:
            arguments["hidden_states"] = first + 4 * np.sin(0.8 * step) * (drift - first)
        run.append(arguments)
    return run


def run(
    model: nn.Module, backend: SpanBackend | None, calls: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], list[int]]:
    """What comes out at each step, and the steps at which no block of the stacks ran, counted from outside."""
    outputs = []
    if backend is not None:
        backend.enable(model)
    with counted({"model": model}) as counter:
        for index, arguments in enumerate(calls):
            if backend is None:
                outputs.append(model(**arguments)[0])
            else:
                with backend.step(index, len(calls), "cond"):  # type: ignore[attr-defined]
                    outputs.append(model(**arguments)[0])
    if backend is not None:
        backend.disable()
    ran = [[path for path, _ in call.blocks if "refiner" not in path] for call in counter.calls]
    return outputs, [step for step, blocks in enumerate(ran) if not blocks]


def by_hand(latent: np.ndarray, sigma: float, power: float = 3.0) -> np.ndarray:
    """The filter, frequency by frequency."""
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    grid = latent.shape[2:]
    gain = np.ones(grid)
    for place in np.ndindex(*grid):
        for axis, index in enumerate(place):
            f = abs(np.fft.fftfreq(grid[axis])[index])
            s = 1 / (f**power + 1e-16)
            gain[place] *= (1 - sigma) * s / ((1 - sigma) ** 2 * s + sigma**2)
    axes = tuple(range(2, latent.ndim))
    return np.fft.ifftn(np.fft.fftn(latent, axes=axes) * (gain / gain.mean()), axes=axes).real


def grids(name: str, calls: Sequence[dict[str, Any]]) -> list[np.ndarray]:
    """The latents on their grid, tokens put there one by one."""
    found = []
    for arguments in calls:
        latent = arguments["hidden_states"].double().numpy()
        if latent.ndim == 3:
            placed = np.zeros((latent.shape[0], latent.shape[2], *GRIDS[name]))
            for token, place in enumerate(np.ndindex(*GRIDS[name])):
                placed[(slice(None), slice(None), *place)] = latent[:, token]
            latent = placed
        found.append(latent)
    return found


def reference(
    name: str, calls: Sequence[dict[str, Any]], threshold: float, most: int = 2
) -> tuple[list[int], list[float]]:
    """Skipped steps and the sums that were compared."""
    skipped, sums = [], []
    before: np.ndarray | None = None
    total, row = 0.0, 0
    for step, latent in enumerate(grids(name, calls)):
        seen = by_hand(latent, 1 - step / STEPS)
        if before is not None and step < STEPS - 1 and not 0 < most <= row:
            total += float(np.abs(seen - before).sum() / np.abs(before).sum())
            sums.append(total)
        else:
            total = np.inf
        before = seen
        if total < threshold:
            skipped.append(step)
            row += 1
        else:
            total, row = 0.0, 0
    return skipped, sums


def mixing(name: str, calls: Sequence[dict[str, Any]]) -> float:
    """A threshold at which some steps are skipped and some are not, off every sum that is compared."""
    for factor in (2.0, 1.5, 3.0, 1.1, 0.8, 5.0):
        threshold = factor * float(np.median(reference(name, calls, 0.0)[1]))
        skipped, sums = reference(name, calls, threshold)
        if 2 < len(skipped) < 10 and min(abs(each / threshold - 1) for each in sums) > 1e-3:
            return threshold
    raise AssertionError("no threshold mixes")


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 4, 3, 5, 6), (1, 2, 1, 4, 4)])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_the_filter_is_the_one_made_by_hand(shape: tuple[int, ...], sigma: float, power: float) -> None:
    latent = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = signal_part(latent, sigma, power).double().numpy()
    expected = by_hand(latent.double().numpy(), sigma, power)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_without_noise_all_passes_and_of_noise_alone_nothing_but_the_mean() -> None:
    latent = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(signal_part(latent, 0.0), latent, rtol=0, atol=1e-4)
    passed = signal_part(latent, 1.0)
    assert float(passed.std(dim=(2, 3)).max()) < 1e-3 * float(passed.abs().max())


@pytest.mark.parametrize("name", GRIDS)
def test_decisions_are_those_of_the_formula(name: str) -> None:
    calls = inputs(name)
    threshold = mixing(name, calls)
    backend = SeaCache({"threshold": threshold})
    _, skipped = run(build_transformer(name), backend, calls)
    expected, sums = reference(name, calls, threshold)
    assert skipped == expected
    found = [number for row in backend.summary().rows for number in row.differences]
    assert found == pytest.approx(sums, rel=1e-3)


def test_it_gives_the_tensors_of_diffusers_own_sea_cache() -> None:
    from diffusers import SeaCacheConfig

    calls = inputs("wan")
    threshold = mixing("wan", calls)
    ours, skipped = run(build_transformer("wan"), SeaCache({"threshold": threshold}), calls)
    model: Any = build_transformer("wan")
    model.enable_cache(SeaCacheConfig(threshold=threshold))
    theirs = []
    with counted({"model": model}) as counter:
        for step, arguments in enumerate(calls):
            fields = {"step_index": step, "sigma": 1 - step / STEPS, "num_inference_steps": STEPS}
            with model.cache_context("cond", **fields):
                theirs.append(model(**arguments)[0])
    assert skipped == [step for step, call in enumerate(counter.calls) if not call.blocks]
    assert skipped
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", GRIDS)
def test_threshold_0_changes_no_bit_not_even_on_a_still_input(name: str) -> None:
    for still in (False, True):
        calls = inputs(name, still)
        dense, _ = run(build_transformer(name), None, calls)
        cached, skipped = run(build_transformer(name), SeaCache({"threshold": 0}), calls)
        assert not skipped
        assert all(torch.equal(one, other) for one, other in zip(cached, dense, strict=True))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("options", [{}, {"calibrator": "none"}])
def test_a_still_input_is_reproduced(name: str, options: dict[str, Any]) -> None:
    calls = inputs(name, still=True)
    dense, _ = run(build_transformer(name), None, calls)
    cached, skipped = run(build_transformer(name), SeaCache({"threshold": 1e9, **options}), calls)
    assert skipped == [step for step in range(1, STEPS - 1) if step % 3]
    for one, other in zip(cached, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5 * float(other.abs().max()))


@pytest.mark.parametrize("pipeline", ["flux", "qwen_image", "sd3", "wan22"])
def test_in_a_pipeline_the_scheduler_tells_the_noise_level_and_no_branch_is_without_its_grid(
    pipeline: str,
) -> None:
    tiny = build(pipeline)
    with enable_cache(tiny.pipe, SeaCache, threshold=1e9) as backend:
        tiny.run(num_inference_steps=12)
        summary = backend.summary()
    assert summary.blocks_skipped > 0
    assert not [event for event in summary.events if event.kind == "no_grid"]
    branches = {(row.transformer, row.branch) for row in summary.rows}
    assert all(summary.cached_steps(transformer, branch) for transformer, branch in branches)


@pytest.mark.parametrize("name", ["cogvideox", "dit", "pixart", "chroma"])
def test_a_model_without_a_known_grid_and_noise_level_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"noise level and the grid.*FluxTransformer2DModel.*READINGS"):
        enable_cache(build_transformer(name), SeaCache)


def test_a_model_that_takes_conditions_beside_the_latent_is_refused() -> None:
    model: Any = build_transformer("wan")
    model.register_to_config(in_channels=9)
    with pytest.raises(ConfigError, match="takes 9 channels and gives 4"):
        enable_cache(model, SeaCache)


def test_a_call_without_its_grid_runs_in_full_and_the_summary_says_so() -> None:
    calls = inputs("flux")
    for arguments in calls:
        arguments["img_ids"] = arguments["img_ids"].roll(
            1, 0
        )  # the last token is not that of the last corner
    backend = SeaCache({"threshold": 1e9})
    _, skipped = run(build_transformer("flux"), backend, calls)
    assert not skipped
    assert "no_grid" in [event.kind for event in backend.summary().events]


def test_every_class_that_can_be_read_has_a_card() -> None:
    from dit_cache_backends import list_cards

    assert set(READINGS) <= {card.transformer for card in list_cards()}
