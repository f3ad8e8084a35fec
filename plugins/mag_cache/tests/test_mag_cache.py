"""Decisions as the formula has them, as diffusers' own has them, and ratios measured as they are defined."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dit_cache_mag_cache import HOSTS, PUBLISHED, MagCache, find_ratios, nearest, skipped_steps
from torch import Tensor, nn

from dit_cache_backends import ConfigError, SpanBackend, enable_cache, list_cards
from dit_cache_conformance.counting import block_lists, counted
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

STEPS = 20
MODELS = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit", "chroma")
RATIOS = [1.0, 1.2, 1.12, 1.06, 1.04, 0.99, 1.03, 0.98, 1.01, 1.0, 1.02, 0.97, 0.96, 1.01, 0.93, 0.9]


@pytest.fixture(autouse=True)
def _as_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIT_CACHE_MAG_RATIOS", str(tmp_path / "ratios"))
    with torch.no_grad():
        yield


def run(
    model: nn.Module,
    backend: SpanBackend | None,
    name: str,
    steps: int = STEPS,
    told: bool = True,
    still: bool = False,
    seed: int = 0,
) -> tuple[list[Tensor], list[int]]:
    """What comes out at each step, and the steps at which no block ran, counted from outside."""
    outputs = []
    if backend is not None:
        backend.enable(model)
    with counted({"model": model}) as counter:
        for index in range(steps):
            arguments = transformer_inputs(name, seed=seed, step=0 if still else index, total=steps)
            if backend is None:
                outputs.append(model(**arguments)[0])
            else:
                with backend.step(index, steps if told else None, "cond"):
                    outputs.append(model(**arguments)[0])
    if backend is not None:
        backend.disable()
    return outputs, [step for step, call in enumerate(counter.calls) if not call.blocks]


def reference(
    ratios: Sequence[float], steps: int, threshold: float, most: int, retention: float
) -> list[int]:
    """The formula once more, with whole products instead of a running one."""
    at = np.rint(np.arange(steps) * (len(ratios) - 1) / (steps - 1)).astype(int)
    resampled = np.asarray(ratios, dtype=np.float64)[at]
    skipped: list[int] = []
    last = None
    for step in range(steps):
        if step < int(retention * steps + 0.5):
            continue
        since = step if last is None else last + 1
        products = [np.prod(resampled[since : now + 1]) for now in range(since, step + 1)]
        error = sum(abs(1 - product) for product in products)
        if threshold > 0 and error <= threshold and len(products) <= most and step > 0:
            skipped.append(step)
            last = since - 1
        else:
            last = step
    return skipped


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.06, 0.24, 1.0])
@pytest.mark.parametrize(("most", "retention"), [(1, 0.0), (3, 0.2), (5, 0.1)])
@pytest.mark.parametrize("steps", [7, 16, 28, 50])
def test_the_steps_worked_out_are_those_of_the_formula(
    threshold: float, most: int, retention: float, steps: int
) -> None:
    skipped = skipped_steps(nearest(RATIOS, steps), threshold, most, retention)
    assert sorted(skipped) == reference(RATIOS, steps, threshold, most, retention)


@pytest.mark.parametrize("threshold", [0.06, 0.24])
@pytest.mark.parametrize(("most", "retention"), [(1, 0.0), (3, 0.2), (5, 0.1)])
@pytest.mark.parametrize("steps", [7, 28])
def test_decisions_are_those_of_the_formula(
    threshold: float, most: int, retention: float, steps: int
) -> None:
    options = {"ratios": RATIOS, "threshold": threshold, "max_skip_steps": most, "retention_ratio": retention}
    _, skipped = run(build_transformer("wan"), MagCache(options), "wan", steps)
    assert skipped == reference(RATIOS, steps, threshold, most, retention)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_steps_are_skipped_whatever_the_model_in_all_of_its_blocks(name: str) -> None:
    _, skipped = run(build_transformer(name), MagCache({"ratios": RATIOS, "threshold": 0.1}), name)
    assert skipped == reference(RATIOS, STEPS, 0.1, 5, 0.1)
    assert 2 < len(skipped) < STEPS - 2


@pytest.mark.parametrize("host", HOSTS)
def test_each_host_has_defaults_of_its_own(host: str) -> None:
    backend = MagCache({"host": host})
    assert backend.config.limits() == HOSTS[host]
    _, skipped = run(build_transformer("flux"), backend, "flux", 28)
    (ratios,) = PUBLISHED["flux_dev"].ratios.values()
    assert skipped == reference(ratios, 28, *HOSTS[host])
    assert skipped


def test_the_published_ratios_are_those_of_their_source() -> None:
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    (ratios,) = PUBLISHED["flux_dev"].ratios.values()
    torch.testing.assert_close(torch.tensor(ratios), FLUX_MAG_RATIOS, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 9, 28, 50])
def test_ratios_are_resampled_as_diffusers_does(steps: int) -> None:
    from diffusers.hooks.mag_cache import nearest_interp

    ratios = [float(number) for number in range(28)]
    assert list(nearest(ratios, steps)) == nearest_interp(torch.tensor(ratios), steps).tolist()


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image", "sd3", "cogvideox", "dit"])
def test_it_gives_the_very_tensors_of_diffusers_own_mag_cache(name: str) -> None:
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    options = {"threshold": 0.1, "max_skip_steps": 3, "retention_ratio": 0.2}
    ours, skipped = run(build_transformer(name), MagCache({"ratios": RATIOS, **options}), name)
    model = build_transformer(name)
    apply_mag_cache(model, MagCacheConfig(mag_ratios=RATIOS, num_inference_steps=STEPS, **options))
    theirs, theirs_skipped = run(model, None, name)
    assert skipped == theirs_skipped == reference(RATIOS, STEPS, *options.values())
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_threshold_0_changes_no_bit_though_some_ratios_are_exactly_1(name: str) -> None:
    dense, _ = run(build_transformer(name), None, name)
    cached, skipped = run(build_transformer(name), MagCache({"ratios": [1.0], "threshold": 0}), name)
    assert not skipped
    assert all(torch.equal(one, other) for one, other in zip(cached, dense, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_still_input_is_reproduced(name: str) -> None:
    dense, _ = run(build_transformer(name), None, name, still=True)
    cached, skipped = run(build_transformer(name), MagCache({"ratios": [1.0]}), name, still=True)
    assert skipped
    for one, other in zip(cached, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def measured(name: str, seed: int = 0) -> list[float]:
    """The ratios by their definition, in numpy, from the tokens that enter and leave the blocks of the plain model."""
    model = build_transformer(name)
    blocks = list(block_lists(model).values())
    seen: list[Tensor] = []

    def entry(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs.get("hidden_states", args[0] if args else None))

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        outs = [out] if isinstance(out, Tensor) else [each for each in out if each is not None]
        seen.append(next(each for each in outs if each.shape == seen[-1].shape))

    blocks[0][0].register_forward_pre_hook(entry, with_kwargs=True)
    blocks[-1][-1].register_forward_hook(leave, with_kwargs=True)
    run(model, None, name, seed=seed)
    sizes = [
        np.linalg.norm((out - into).double().numpy(), axis=-1)
        for into, out in zip(seen[::2], seen[1::2], strict=True)
    ]
    return [1.0, *(float((now / before).mean()) for before, now in itertools.pairwise(sizes))]


@pytest.mark.parametrize("name", ["wan", "flux", "qwen_image", "dit"])
def test_a_calibration_computes_every_step_and_writes_ratios_as_they_are_defined(
    name: str, tmp_path: Path
) -> None:
    dense, _ = run(build_transformer(name), None, name)
    backend = MagCache({"calibrate": True, "save_as": "mine"})
    outputs, skipped = run(build_transformer(name), backend, name)
    assert not skipped
    assert all(torch.equal(one, other) for one, other in zip(outputs, dense, strict=True))
    written = json.loads((tmp_path / "ratios" / "mine.json").read_text())
    assert list(written["ratios"]) == ["transformer:cond"]
    assert written["ratios"]["transformer:cond"] == pytest.approx(measured(name), rel=1e-4)
    assert "ratios_written" in [event.kind for event in backend.summary().events]


def test_what_was_measured_is_used_by_its_name_or_its_path(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.json"
    for name in ("mine", str(path)):
        run(build_transformer("wan"), MagCache({"calibrate": True, "save_as": name}), "wan")
        ratios = find_ratios(name).of("transformer", "cond")
        options = {"threshold": 0.01, "max_skip_steps": 3, "retention_ratio": 0.1}
        _, skipped = run(build_transformer("wan"), MagCache({"ratios": name, **options}), "wan")
        assert skipped == reference(ratios, STEPS, *options.values())
        assert 0 < len(skipped) < STEPS - 1
    assert path.exists()


def test_branches_and_experts_are_measured_and_used_apart(tmp_path: Path) -> None:
    tiny = build("wan22")
    with enable_cache(tiny.pipe, MagCache, calibrate=True, save_as="experts"):
        tiny.run(num_inference_steps=STEPS)
    written = json.loads((tmp_path / "ratios" / "experts.json").read_text())["ratios"]
    assert set(written) == {f"{t}:{b}" for t in ("transformer", "transformer_2") for b in ("cond", "uncond")}
    assert len(written["transformer:cond"]) + len(written["transformer_2:cond"]) == STEPS
    assert written["transformer:cond"] != written["transformer:uncond"]
    options = {"threshold": 0.02, "max_skip_steps": 3, "retention_ratio": 0.1}
    with enable_cache(tiny.pipe, MagCache, ratios="experts", **options) as backend:
        tiny.run(num_inference_steps=STEPS)
        rows = backend.summary().rows
    for key, ratios in written.items():
        transformer, branch = key.split(":")
        steps = [row.step for row in rows if (row.transformer, row.branch) == (transformer, branch)]
        expected = [steps[at] for at in reference(ratios, len(ratios), *options.values())]
        assert backend.summary().cached_steps(transformer, branch) == expected


def test_overrides_give_an_expert_ratios_of_its_own() -> None:
    tiny = build("wan22")
    with enable_cache(
        tiny.pipe, MagCache, ratios=[1.0], overrides={"transformer_2": {"threshold": 0}}
    ) as backend:
        tiny.run(num_inference_steps=STEPS)
        assert backend.summary().cached_steps("transformer", "cond")
        assert not backend.summary().cached_steps("transformer_2", "cond")


def test_a_run_of_unknown_length_is_told_of_in_the_summary() -> None:
    backend = MagCache({"ratios": RATIOS, "threshold": 0.1})
    run(build_transformer("wan"), backend, "wan", len(RATIOS), told=False)
    assert [event.kind for event in backend.summary().events] == ["steps_unknown"]
    backend = MagCache({"calibrate": True, "save_as": "none"})
    run(build_transformer("wan"), backend, "wan", told=False)
    assert {event.kind for event in backend.summary().events} == {"steps_unknown"}


def test_a_branch_that_was_not_measured_is_an_error() -> None:
    run(build_transformer("wan"), MagCache({"calibrate": True, "save_as": "mine"}), "wan")
    tiny = build("sd3")
    with (
        enable_cache(tiny.pipe, MagCache, ratios="mine"),
        pytest.raises(ConfigError, match="not for transformer:0"),
    ):
        tiny.run(num_inference_steps=4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratios": "flux_schnell"}, "no set 'flux_schnell'.*flux_dev.*save_as"),
        ({"ratios": []}, "one number above 0"),
        ({"ratios": [1.0, -0.5]}, "one number above 0"),
        ({"calibrate": True}, "go together"),
        ({"save_as": "mine"}, "go together"),
        ({"host": "comfyui"}, "vllm_omni"),
    ],
)
def test_what_is_wrong_is_refused_when_the_backend_is_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MagCache(options)


def test_a_model_without_published_ratios_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no ratios.*SD3Transformer2DModel.*Flux.*Wan.*calibrate: true"):
        enable_cache(build_transformer("sd3"), MagCache)


def test_a_class_of_several_models_is_refused_with_the_names_of_their_sets() -> None:
    with pytest.raises(ConfigError, match=r"WanTransformer3DModel.*wan21_t2v_1_3b.*or wan21_i2v_720p"):
        enable_cache(build_transformer("wan"), MagCache)


@pytest.mark.parametrize(
    ("name", "model"),
    [("flux_dev", "flux"), ("qwen_image", "qwen_image"), ("hunyuan_video", "hunyuan_video")],
)
def test_the_one_set_that_is_published_for_a_class_is_taken_for_it(name: str, model: str) -> None:
    ratios = PUBLISHED[name].of("transformer", "cond")
    backend = MagCache({})
    run(build_transformer(model), backend, model, len(ratios))
    skipped = backend.summary().cached_steps("transformer", "cond")
    assert skipped == reference(ratios, len(ratios), *HOSTS["vllm_omni"])
    assert skipped


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_set_has_an_origin_and_branches_that_all_but_agree(name: str) -> None:
    """A digit that was mistyped would show: what grows in a step hardly depends on the branch, as the paper says."""
    each = PUBLISHED[name]
    assert re.search(r"diffusers 0\.42\.1|at [0-9a-f]{7} ", each.source)
    assert each.transformer in {card.transformer for card in list_cards()}
    lists = list(each.ratios.values())
    assert {len(ratios) for ratios in lists} <= {28, 40, 50}
    assert all(ratios[0] == 1 for ratios in lists)
    for ratios in lists[1:]:
        assert np.abs(np.subtract(ratios, lists[0])).max() < 0.01


def test_the_branches_of_wan_have_lists_of_their_own() -> None:
    options = {"ratios": "wan21_t2v_1_3b", "threshold": 0.02, "max_skip_steps": 3, "retention_ratio": 0.2}
    tiny = build("wan")
    with enable_cache(tiny.pipe, MagCache, **options) as backend:
        tiny.run(num_inference_steps=50)
        for branch in ("cond", "uncond"):
            ratios = PUBLISHED["wan21_t2v_1_3b"].of("transformer", branch)
            assert backend.summary().cached_steps("transformer", branch) == reference(
                ratios, 50, 0.02, 3, 0.2
            )


def test_the_names_of_vllm_omni_are_taken() -> None:
    options = {"mag_threshold": 0.1, "mag_max_skip_steps": 2, "mag_retention_ratio": 0.3, "mag_ratios": [1.0]}
    assert MagCache(options).config.limits() == (0.1, 2, 0.3)
