"""The comparison that `dit-cache demo` shows, on the shipped model and few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dit_cache_backends.demo import DEMO_PROMPTS, load_demo
from dit_cache_backends.demo.run import compare, main
from dit_cache_backends.demo.settings import ATTACHED, DENSE, FULL, PLANNED, SHORT, STRATEGIES, Setting

STEPS = 6  # the masks of 6 steps are 111001: four steps compute
STATIC = Setting("static", {"scm_steps_mask_policy": "ultra", "scm_steps_policy": "static"})


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_demo()


def test_a_cached_setting_runs_fewer_blocks_and_an_attached_one_draws_the_same_picture(pipeline: Any) -> None:
    prompts = [DEMO_PROMPTS[0], "no sentence of the demo's grammar"]
    dense, attached, static = compare(pipeline, prompts, (DENSE, ATTACHED, STATIC), STEPS)
    blocks = len(pipeline.transformer.transformer_blocks) + len(
        pipeline.transformer.single_transformer_blocks
    )
    assert blocks == 12
    assert dense.blocks == dense.blocks_run == attached.blocks_run == 2 * STEPS * blocks
    # A cached step runs its first block only.
    assert static.blocks_run == 2 * (4 * blocks + 2)
    assert static.cached_steps == [2, 2]
    for reference, same, other in zip(dense.pictures, attached.pictures, static.pictures, strict=True):
        assert np.array_equal(np.asarray(reference), np.asarray(same))
        assert not np.array_equal(np.asarray(reference), np.asarray(other))
    assert attached.psnr == [100.0, 100.0]
    assert all(10 < value < 100 for value in static.psnr)
    # Only what can be parsed is scored.
    assert len(static.adherent) == 1


def test_a_setting_of_fewer_steps_is_dense(pipeline: Any) -> None:
    _, fewer = compare(pipeline, DEMO_PROMPTS[:1], (DENSE, Setting("three", steps=3)), STEPS)
    assert fewer.blocks_run == fewer.blocks == 3 * 12


def test_the_command_writes_the_sheet_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, report = tmp_path / "pictures" / "sheet.png", tmp_path / "demo.md"
    sheet.parent.mkdir()
    results = main(DEMO_PROMPTS[:1], STEPS, 0, sheet, report=report)
    printed = capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    for result in results:
        assert result.setting.label in printed
        assert f"| {result.setting.label} |" in text
    assert "pictures/sheet.png" in text
    with Image.open(sheet) as picture:
        assert picture.width > 64
        assert picture.height > 64 * len(SHORT)


def test_the_full_comparison_has_every_policy_static_and_dynamic_with_and_without_taylorseer() -> None:
    seen = {
        (
            config.get("scm_steps_mask_policy"),
            config.get("scm_steps_policy"),
            config.get("enable_taylorseer", False),
        )
        for setting in FULL
        if (config := setting.config) is not None
    }
    for policy in ("slow", "medium", "fast", "ultra"):
        for how in ("static", "dynamic"):
            assert {(policy, how, True), (policy, how, False)} <= seen


def test_the_shipped_plans_are_of_the_shipped_model_and_better_than_the_masks(pipeline: Any) -> None:
    ultra = next(setting for setting in SHORT if setting.label.startswith("SCM ultra"))
    plans = {setting.config["compute"]: setting for setting in STRATEGIES if setting.backend == "step_plan"}
    assert set(plans) == set(PLANNED)
    dense, masked, planned = compare(pipeline, DEMO_PROMPTS[:2], (DENSE, ultra, plans[8]), 28)
    assert planned.cached_steps == [20, 20]
    assert planned.blocks_run == 2 * 8 * 12 < masked.blocks_run < dense.blocks_run
    assert min(planned.psnr) > max(masked.psnr) + 3


def test_what_is_not_installed_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dit_cache_backends.demo.run.installed_names", lambda: ["cache_dit", "dbprune", "tea_cache"]
    )
    results = main(DEMO_PROMPTS[:1], STEPS, 0, tmp_path / "sheet.png")
    assert {result.setting.backend for result in results} == {"cache_dit"}
    assert "step_plan is not installed. pip install dit-cache-step-plan" in capsys.readouterr().out
