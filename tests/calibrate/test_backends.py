"""Backends with a calibration: the decisions that follow, and the models and schedulers that it is refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dit_cache_backends import ConfigError, enable_cache, get_cache_backend
from dit_cache_backends.calibrate import Calibration, fit, read_calibration, simulate
from dit_cache_backends.models import card_for, register_card
from dit_cache_backends.trials import Setting, Trial
from dit_cache_conformance.tiny import Tiny, build, build_transformer

from .runs import STEPS, prompts_of, record_of, recorded

BACKENDS = {"tea_cache": "coefficients", "mag_cache": "mag_ratios"}


@pytest.fixture(autouse=True)
def _no_gradients(as_in_a_run: None) -> None:
    """As in a run."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Calibrations of tiny pipelines: with guidance in branches, with two experts, with neither."""
    folder = tmp_path_factory.mktemp("calibrations")
    found = {
        name: fit(record_of(name, steps=20 if name == "wan22" else STEPS))
        for name in ("qwen_image", "wan22", "flux")
    }
    return {name: each.write(folder / f"{name}.yaml") for name, each in found.items()}


def published_rule(
    ratios: tuple[float, ...], steps: int, threshold: float, most: int, retention: float
) -> list[int]:
    """MagCache's algorithm (arXiv 2506.09045, algorithm 1): skipped steps, with whole products."""
    at = np.rint(np.arange(steps) * (len(ratios) - 1) / (steps - 1)).astype(int)
    values = np.asarray(ratios)[at]
    skipped: list[int] = []
    since = int(retention * steps + 0.5)
    for step in range(since, steps):
        products = [np.prod(values[since : now + 1]) for now in range(since, step + 1)]
        if sum(abs(1 - each) for each in products) <= threshold and len(products) <= most and step > 0:
            skipped.append(step)
        else:
            since = step + 1
    return skipped


@pytest.mark.parametrize("steps", [20, 13])
def test_the_ratios_of_the_file_drive_mag_cache_as_its_algorithm_says(
    steps: int, files: dict[str, Path]
) -> None:
    found, limits = read_calibration(files["wan22"]), {"max_skip_steps": 3, "retention_ratio": 0.1}
    # In the mean of the prompts a ratio of tiny random blocks is near 1: so is the threshold near 0.
    spread = np.abs(np.array(found.ratios_of("transformer_2", "cond").ratios.median) - 1)[1:]
    threshold = float(2.5 * np.median(spread))
    tiny, skipped = build("wan22"), 0
    with enable_cache(
        tiny.pipe, "mag_cache", ratios=str(files["wan22"]), threshold=threshold, **limits
    ) as backend:
        tiny.run(steps)
        summary = backend.summary()
    for name in ("transformer", "transformer_2"):
        for branch in ("cond", "uncond"):
            called = [row.step for row in summary.rows if (row.transformer, row.branch) == (name, branch)]
            ratios = found.ratios_of(name, branch).ratios.median
            expected = published_rule(ratios, len(called), threshold, 3, 0.1)
            assert summary.cached_steps(name, branch) == [called[at] for at in expected]
            skipped += len(expected)
    assert skipped


def test_ratios_are_the_median_of_the_prompts_with_its_spread(tmp_path: Path) -> None:
    record = record_of("qwen_image", count=5)
    found = fit(record)
    rows = np.array([[1.0, *each.columns["ratio"][1:]] for each in record.series("transformer:uncond")])
    ratios = found.ratios_of("transformer", "uncond").ratios
    assert ratios.median == pytest.approx(np.median(rows, axis=0))
    assert ratios.low == pytest.approx(np.quantile(rows, 0.05, axis=0))
    assert ratios.high == pytest.approx(np.quantile(rows, 0.95, axis=0))
    assert fit(record.of_prompts([2])).ratios_of("transformer", "uncond").ratios.median == tuple(rows[2])


def test_the_curve_of_each_expert_drives_tea_cache(files: dict[str, Path]) -> None:
    """Wan is compared by the time alone, so that the record foretells every decision."""
    found = read_calibration(files["wan22"])
    assert found.curves["transformer"] != found.curves["transformer_2"]
    threshold = found.thresholds["tea_cache"][1].value
    options = {"coefficients": str(files["wan22"]), "rel_l1_thresh": threshold}
    record = record_of("wan22", count=1, steps=20)
    tiny = build("wan22")
    with enable_cache(tiny.pipe, "tea_cache", **options) as backend:
        tiny.run(20)
        summary = backend.summary()
    made: Any = get_cache_backend("tea_cache", options)
    for key, series in record.runs[0].items():
        transformer, branch = key.split(":")
        computed = made.replay(series)
        expected = [step for step, run in zip(series.steps, computed, strict=True) if not run]
        assert summary.cached_steps(transformer, branch) == expected
        curve, total = found.curves[transformer].used.curve, 0.0
        for difference, run in zip(series.columns["signal"][1:], computed[1:], strict=True):
            total += curve(difference or 0.0)
            assert run == (total >= threshold)
            total = 0.0 if run else total
    assert summary.blocks_skipped
    assert simulate(record, "tea_cache", options).mean < 20


def test_the_lowest_threshold_of_the_file_is_the_default(files: dict[str, Path]) -> None:
    found = read_calibration(files["qwen_image"])
    options = {"coefficients": str(files["qwen_image"])}
    record = record_of("qwen_image", count=2)
    given = {**options, "rel_l1_thresh": found.thresholds["tea_cache"][0].value}
    assert simulate(record, "tea_cache", options) == simulate(record, "tea_cache", given)
    assert (
        simulate(record, "tea_cache", {**options, "preset": "ultra"}).mean
        < simulate(record, "tea_cache", given).mean
    )


def test_differences_outside_of_the_fitted_range_are_told_of_and_clamped(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    data = yaml.safe_load(files["qwen_image"].read_text())
    data["tea_cache"]["transformer"]["range"] = [1e-9, 2e-9]
    path = tmp_path / "narrow.yaml"
    path.write_text(yaml.safe_dump(data))
    for outside, cached in ((None, True), ("clamp", True), ("compute", False)):
        tiny = build("qwen_image")
        options = {"coefficients": str(path), "rel_l1_thresh": 10.0, "coefficients_outside": outside}
        with enable_cache(tiny.pipe, "tea_cache", **options) as backend:
            tiny.run(6)
            summary = backend.summary()
        assert bool(summary.blocks_skipped) is cached
        assert "outside_coefficients_range" in [event.kind for event in summary.events]


Change = Callable[[Tiny], Any]


def other_scheduler(tiny: Tiny) -> Any:
    from diffusers import FlowMatchHeunDiscreteScheduler

    tiny.pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    return tiny.pipe


def other_shift(tiny: Tiny) -> Any:
    tiny.pipe.scheduler = type(tiny.pipe.scheduler)(shift=3.0)
    return tiny.pipe


def other_weights(tiny: Tiny) -> Any:
    with torch.no_grad():
        next(iter(tiny.pipe.transformer.parameters())).view(-1)[3] += 0.5
    return tiny.pipe


def other_class(tiny: Tiny) -> Any:
    return build("sd3").pipe


REFUSED: list[tuple[Change, str]] = [
    (
        other_scheduler,
        r"scheduler: measured with FlowMatchEulerDiscreteScheduler, here FlowMatchHeunDiscreteScheduler",
    ),
    (other_shift, r"scheduler: shift was 1\.0, here 3\.0"),
    (other_weights, r"transformer: its weights are others"),
    (other_class, r"transformer: measured on a FluxTransformer2DModel, here SD3Transformer2DModel"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("change", "text"), REFUSED)
def test_another_model_or_scheduler_is_refused_before_anything_is_touched(
    backend: str, change: Change, text: str, files: dict[str, Path]
) -> None:
    pipe = change(build("flux"))
    options = {BACKENDS[backend]: str(files["flux"])}
    before = [type(module) for module in pipe.transformer.modules()]
    with pytest.raises(ConfigError, match=text) as raised:
        enable_cache(pipe, backend, **options)
    assert "provenance: ignore" in str(raised.value)
    assert [type(module) for module in pipe.transformer.modules()] == before
    with enable_cache(pipe, backend, **options, provenance="ignore") as enabled:
        assert enabled.is_enabled()


def same(tiny: Tiny) -> Any:
    return tiny.pipe


def bare(tiny: Tiny) -> Any:
    return tiny.pipe.transformer


def other_pipeline(tiny: Tiny) -> Any:
    cls = type(tiny.pipe)
    tiny.pipe.__class__ = type("FluxPipelineOfAnotherHost", (cls,), {})
    return tiny.pipe


def compiled(tiny: Tiny) -> Any:
    for each in tiny.pipe.transformer.transformer_blocks:
        each.compile()
    return tiny.pipe


def half(tiny: Tiny) -> Any:
    return tiny.pipe.to(dtype=torch.bfloat16)


def offloaded(tiny: Tiny) -> Any:
    """As accelerate leaves what it has moved away: its numbers cannot be seen, its names and shapes can."""
    projection = tiny.pipe.transformer.proj_out
    projection.weight = torch.nn.Parameter(torch.empty_like(projection.weight, device="meta"))
    return tiny.pipe


def of_another_library(tiny: Tiny) -> Any:
    """As vLLM-Omni has it: a class of its own of the same name, other names of the weights."""
    model = other_weights(tiny).transformer
    cls = type(model)
    model.__class__ = type(cls.__name__, (cls,), {"__module__": "another_library.models"})
    model.register_buffer("one_more", torch.zeros(3))
    return tiny.pipe


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change", [same, bare, other_pipeline, compiled, half, offloaded, of_another_library]
)
def test_what_makes_no_other_model_is_let_through(
    backend: str, change: Change, files: dict[str, Path]
) -> None:
    target = change(build("flux"))
    with enable_cache(target, backend, **{BACKENDS[backend]: str(files["flux"])}) as enabled:
        assert enabled.is_enabled()


def test_a_model_of_another_library_is_compared_by_its_blocks(files: dict[str, Path]) -> None:
    pipe = build("flux", num_single_layers=5).pipe
    model = pipe.transformer
    model.__class__ = type(type(model).__name__, (type(model),), {"__module__": "another_library.models"})
    with pytest.raises(ConfigError, match=r"measured on \d+ transformer_blocks, here \d+ transformer_blocks"):
        enable_cache(pipe, "mag_cache", ratios=str(files["flux"]))


def test_another_number_of_steps_is_taken_and_told_of(files: dict[str, Path]) -> None:
    tiny = build("flux")
    with enable_cache(tiny.pipe, "tea_cache", coefficients=str(files["flux"])) as backend:
        tiny.run(STEPS + 3)
        kinds = [event.kind for event in backend.summary().events]
        assert "calibrated_for_other_steps" in kinds
        tiny.run(STEPS)
        assert "calibrated_for_other_steps" not in [event.kind for event in backend.summary().events]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expert_without_an_entry_is_refused_by_its_name(
    backend: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    data = yaml.safe_load(files["wan22"].read_text())
    data[backend] = {key: value for key, value in data[backend].items() if "transformer_2" not in key}
    data["left_out"] = {"tea_cache": {"transformer_2": "too few points"}}
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(data))
    text = "too few points" if backend == "tea_cache" else "nothing for transformer_2"
    with pytest.raises(ConfigError, match=text):
        enable_cache(build("wan22").pipe, backend, **{BACKENDS[backend]: str(path)}, provenance="ignore")


def test_a_file_works_through_a_request_as_well(files: dict[str, Path]) -> None:
    with Trial(build("qwen_image").pipe) as trial:
        for backend, option in BACKENDS.items():
            options = {option: str(files["qwen_image"])}
            drawing = trial.draw(
                prompts_of("qwen_image", 1)[0], Setting(backend, options, backend=backend), steps=STEPS
            )
            assert drawing.summary is not None
            assert drawing.blocks_run <= drawing.blocks
        trial.pipeline.scheduler = type(trial.pipeline.scheduler)(shift=5.0)
        with pytest.raises(ConfigError, match=r"shift was"):
            trial.check(
                Setting("x", {"coefficients": str(files["qwen_image"]), "start_step": 2}, backend="tea_cache")
            )


def test_a_model_without_a_signal_is_left_out_of_tea_cache_alone(tmp_path: Path) -> None:
    tiny = build("flux")
    cls = type(tiny.pipe.transformer)
    card = replace(card_for(tiny.pipe.transformer), transformer="Signalless", library=None, signals=())
    register_card(card, replace=True)
    tiny.pipe.transformer.__class__ = type("Signalless", (cls,), {})
    path = fit(recorded(tiny, count=1, steps=6)).write(tmp_path / "signalless.yaml")
    found = read_calibration(path)
    assert list(found.left_out) == ["tea_cache"]
    assert "no signal" in found.left_out["tea_cache"]["transformer"]
    assert found.ratios
    assert found.rates
    with pytest.raises(ConfigError, match="modulated input"):
        enable_cache(tiny.pipe, "tea_cache", coefficients=str(path))
    with enable_cache(tiny.pipe, "mag_cache", ratios=str(path)) as backend:
        assert backend.is_enabled()


def test_a_file_is_the_same_in_yaml_and_json_and_after_reading(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    found = read_calibration(files["wan22"])
    json_file, again = found.write(tmp_path / "x.json"), found.write(tmp_path / "again.yaml")
    assert again.read_text() == files["wan22"].read_text()
    other: Calibration = read_calibration(json_file)
    assert other.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read"),
        (": : :\n", "cannot be read as .yaml"),
        ("- 1\n", "is no calibration"),
        ("calibration: 9\n", "version 9; this release reads version 1"),
        ("calibration: 1\nmeasured: {}\n", "cannot be read"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_calibration_is_refused_when_the_backend_is_made(
    backend: str, content: str | None, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_text(content)
    if backend == "mag_cache":
        text = "cannot be read|does not exist|expected a file of|version 9"
    with pytest.raises(ConfigError, match=text):
        get_cache_backend(backend, {BACKENDS[backend]: str(path)})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("tea_cache", "transformer", "monotone", "y"), [1.0, 0.5]),
        (("tea_cache", "transformer", "use"), "spline"),
        (("mag_cache", "transformer:cond", "ratios"), [1.0, -1.0]),
        (("easy_cache", "transformer:cond", "rates"), []),
        (("measured", "seeds"), "none"),
    ],
)
def test_a_file_that_was_edited_wrongly_is_refused(
    place: tuple[str, ...], value: Any, tmp_path: Path, files: dict[str, Path]
) -> None:
    data = yaml.safe_load(files["flux"].read_text())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_calibration(path)


def test_mag_cache_does_not_write_its_own_ratios_over_a_calibration(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    path = tmp_path / "kept.yaml"
    path.write_bytes(files["flux"].read_bytes())
    tiny = build("flux")
    with (
        enable_cache(tiny.pipe, "mag_cache", calibrate=True, save_as=str(path)),
        pytest.raises(ConfigError, match="under another name"),
    ):
        tiny.run(3)
    assert path.read_bytes() == files["flux"].read_bytes()


def test_a_transformer_that_the_record_never_saw_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"measured on|nothing for"):
        enable_cache(build_transformer("wan"), "tea_cache", coefficients=str(files["flux"]))
