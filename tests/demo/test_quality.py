"""The page on quality: thresholds that compute as many steps as asked, aims that are told apart, a run that goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dit_cache_backends.demo import quality, quality_report, quality_rows, quality_schedulers
from dit_cache_backends.demo.quality_rows import FEWER, PLANNED, SCM_TAYLOR, Row, Score, turned
from dit_cache_backends.trials import DENSE, Prompt, Setting, Trial


@pytest.mark.parametrize("wanted", [0.2, 0.35, 0.5, 0.8])
def test_a_threshold_is_found_at_which_so_many_blocks_run(wanted: float) -> None:
    asked: list[float] = []

    def share(threshold: float) -> float:
        asked.append(threshold)
        return 1 / (1 + 3 * threshold)

    found = turned(share, wanted, 0.001, 10.0)
    assert abs(share(found) - wanted) < 0.01
    assert len(asked) <= quality_rows.TURNS + 1


def test_where_no_threshold_computes_so_many_steps_the_nearest_is_taken() -> None:
    assert turned(lambda threshold: 0.9 if threshold < 0.5 else 0.3, 0.35, 0.01, 4.0) > 0.5


def test_plans_are_found_on_other_scenes_and_noises_than_they_are_scored_on() -> None:
    found_on, scored = quality.halves()
    assert (len(found_on), len(scored)) == (quality.FOUND_ON, quality.SCORED)
    assert not {each.seed for each in found_on} & {each.seed for each in scored}
    assert not {each.text for each in found_on} & {each.text for each in scored}


def score(family: str, computed: int, psnr: list[float], as_asked: float = 1.0) -> Score:
    setting = DENSE if family == "dense" else Setting(family)
    return Score(Row(family, computed, setting), psnr, [0.99, 0.99], [1.0, as_asked], [0.3, 0.3])


def test_an_aim_that_is_missed_is_said_to_be() -> None:
    scores = [
        score("dense", 28, [100.0, 100.0]),
        score(FEWER, 8, [50.0, 44.0]),
        score(SCM_TAYLOR, 8, [50.0, 40.0]),
        score(PLANNED, 8, [56.5, 46.0], as_asked=0.9),
    ]
    rows = {row[1]: row for row in quality_report.aims(scores)}
    assert rows[SCM_TAYLOR] == ("8", SCM_TAYLOR, "+6.2", "+6.0", "6 / 5", "yes")
    assert rows[FEWER][2:] == ("+4.2", "+2.0", "5 / -", "NO")
    assert rows["dense, as asked"][-1] == "NO"


def test_a_run_that_is_stopped_goes_on_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_rows, "DIALS", quality_rows.DIALS[-1:])
    arguments = ["--folder", str(tmp_path / "kept"), "--computed", "8", "--prompts", "2", "--found-on", "3"]
    arguments += ["--plan", str(tmp_path / "plan.yaml")]
    arguments += ["--evaluations", "1", "--segments", "0", "--conditions", "1"]
    arguments += ["--report", str(tmp_path / "quality.md"), "--plot", str(tmp_path / "quality.png")]
    with pytest.raises(SystemExit) as stopped:
        quality.main([*arguments, "--seconds", "0.001"])
    assert stopped.value.code == 3
    assert not (tmp_path / "quality.md").exists()
    quality.main(arguments)
    page = (tmp_path / "quality.md").read_text()
    for family in (FEWER, SCM_TAYLOR, "mag_cache, calibrated", PLANNED, "17 of 28, Euler"):
        assert f"| {family}" in page
    assert "{elsewhere}" not in page
    assert "`shift` 3 |" not in page  # only the first condition was asked for
    assert "| dense | 28.0 | - | - | - | - |" in page
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    kept = (tmp_path / "kept" / "scores.jsonl").read_text()
    quality.main(arguments)
    assert (tmp_path / "quality.md").read_text() == page
    assert (tmp_path / "kept" / "scores.jsonl").read_text() == kept


@pytest.mark.parametrize("condition", quality_schedulers.CONDITIONS[1:], ids=lambda each: each.label)
def test_every_condition_runs_and_leaves_the_scheduler_as_it_was(
    condition: quality_schedulers.Condition, tmp_path: Path
) -> None:
    short = replace(condition, computed=(3,), steps=3 if condition.scheduler == "heun" else 5)
    with Trial("demo") as trial:
        before = trial.pipeline.scheduler
        rows = quality_schedulers.compared(
            trial,
            [Prompt("a red circle", 0)],
            [Prompt("a blue square", 1)],
            tmp_path,
            lambda *_: None,
            [short],
            1,
        )
        assert trial.pipeline.scheduler is before
    assert [row[0] for row in rows] == [f"3 of {condition.label}"]
    assert len(rows[0]) == len(quality_schedulers.HEADS)
    for cell in rows[0][1:]:
        mean, worst = map(float, cell.rstrip(")").split(" ("))
        assert mean == worst
        assert -30 < mean < 100
