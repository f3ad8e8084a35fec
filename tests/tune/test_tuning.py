"""Whole searches on the shipped model, and what they leave behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.configuration.settings import find_settings
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.trials import Prompt, Setting, Trial
from dit_cache_backends.tune.aim import Aim
from dit_cache_backends.tune.scores import Scores
from dit_cache_backends.tune.tuning import Found, Request, tune
from tests.compare.films import film
from tests.tune.conftest import PROMPTS, STEPS

BLOCKS = 12 * STEPS


def request(aim: Aim, only: list[str], **more: Any) -> Request:
    return Request(aim, PROMPTS[:2], PROMPTS[2:4], STEPS, only, plans=False, **more)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the command has searched, with prompts that would be markup."""
    folder = tmp_path_factory.mktemp("tune")
    prompts = [
        "<script>alert(1)</script> a red circle",
        "a \"blue\" ring & a 'green' one",
        "{{ 7 * 7 }}",
        "a red ring",
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    arguments = [
        "--strategies",
        "step_plan",
        "--speedup",
        "1.9",
        "--by",
        "blocks",
        "--no-plans",
        "--time-budget",
        "none",
    ]
    arguments += [
        "--prompts",
        str(folder / "prompts.json"),
        "--num-inference-steps",
        str(STEPS),
        "--seed",
        "5",
    ]
    done = CliRunner().invoke(app, ["tune", "demo", *arguments, "--work", str(folder / "work")])
    assert done.exit_code == 0, done.output
    assert "PSNR" in done.stdout
    return folder / "work"


def test_the_file_is_ready_for_cache_config_and_runs_the_blocks_that_were_reported(
    written: Path, trial: Trial
) -> None:
    settings = find_settings(cache_config=str(written / "cache.yaml"), environment={})
    report = json.loads((written / "result.json").read_text())
    assert (settings.backend, settings.options) == (report["backend"], report["options"])
    check = report["checks"][0]
    assert (check["condition"], check["prompts"]) == ("held-out prompts", 2)
    drawn = [
        trial.draw(
            Prompt(text, seed), Setting("it", settings.options, backend=str(settings.backend)), steps=STEPS
        )
        for text, seed in (("a \"blue\" ring & a 'green' one", 6), ("a red ring", 8))
    ]
    assert sum(each.blocks_run for each in drawn) == check["found"]["blocks_run"]
    assert check["found"]["blocks"] == 2 * BLOCKS
    # 8 steps, 1.9 times fewer: 4 of them compute.
    assert check["found"]["blocks_run"] == BLOCKS
    assert report["reached"] is True
    assert report["rival"] == "dense, 4 steps"


def test_the_comments_say_what_was_measured_and_on_which_model(written: Path) -> None:
    text = (written / "cache.yaml").read_text()
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    report = json.loads((written / "result.json").read_text())
    found = report["checks"][0]["found"]
    assert f"PSNR {found['psnr']['mean']:.1f} dB, 5th percentile {found['psnr']['p5']:.1f}" in comments
    assert f"blocks run {found['blocks_run']} of {found['blocks']}" in comments
    assert report["provenance"]["scheduler"] in comments
    for each in report["checks"]:
        assert each["condition"] in comments
    assert [each["condition"] for each in report["checks"]] == [
        "held-out prompts",
        "other seeds",
        "other size, 48x48",
    ]
    for line in report["verdict"]:
        assert line in comments


class Tags(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_stands_alone_and_no_prompt_is_markup_in_it(written: Path) -> None:
    page = (written / "report.html").read_text()
    found = Tags(page)
    assert "script" not in {tag for tag, _ in found.tags}
    assert "49" not in re.findall(r"Worst held-out prompt: (.*)", found.text)
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert len([tag for tag, _ in found.tags if tag == "img"]) == 4  # the plot, and a sheet of each condition
    report = json.loads((written / "result.json").read_text())
    worst = report["checks"][0]["found"]["psnr"]["worst_name"]
    assert f"Worst held-out prompt: {worst}" in found.text


def test_a_page_with_hostile_names_is_escaped_throughout(
    trial: Trial, stranger: Callable[[], None], tmp_path: Path
) -> None:
    """The worst prompt is on the page, and here it is one that would be a script."""
    stranger()
    hostile = [Prompt("<script>alert(1)</script> a red circle", 1)]
    wanted = Request(Aim(speedup=1.5, by="blocks"), PROMPTS[:1], hostile, STEPS, ["stranger"], plans=False)
    found = tune(trial, wanted, tmp_path)
    page = reported(found, trial, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def reported(found: Found, trial: Trial, folder: Path) -> str:
    from dit_cache_backends.trials import provenance
    from dit_cache_backends.tune.report import write_plot, write_report, write_sheets

    write_plot(found, folder / "plot.png")
    made_for = provenance(trial.pipeline)
    sheets = write_sheets(found, folder)
    write_report(found, "<b>model</b>", made_for, "file", folder / "plot.png", sheets, folder / "report.html")
    return (folder / "report.html").read_text()


def test_what_was_drawn_is_not_drawn_again_when_a_search_goes_on(
    trial: Trial, stranger: Callable[[], None], drawn: list[Any], tmp_path: Path
) -> None:
    stranger()
    wanted = request(Aim(speedup=1.7, by="blocks"), ["stranger"])
    stopped_after = 9

    def stop(_: str) -> None:
        if len(drawn) >= stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(trial, wanted, tmp_path, say=stop)
    before = len(drawn)
    assert before == stopped_after
    with (tmp_path / "drawings.jsonl").open("a") as file:
        file.write('{"key": "cut sho')  # it was stopped while it wrote
    found = tune(trial, wanted, tmp_path)
    assert len(set(drawn)) == len(drawn), "something was drawn twice"
    assert found.scores.made == len(drawn) - before
    after = len(drawn)
    again = tune(trial, wanted, tmp_path)
    assert len(drawn) == after
    assert again.best.setting == found.best.setting
    assert again.checks == found.checks


def test_drawings_of_another_call_or_number_of_steps_are_not_taken_for_these(
    trial: Trial, drawn: list[Any], tmp_path: Path
) -> None:
    setting = Setting("half", {"mask": "10101010"}, backend="step_plan")
    first = Scores(trial, tmp_path, STEPS).score(setting, PROMPTS[0])
    assert Scores(trial, tmp_path, STEPS).score(setting, PROMPTS[0]) == first
    count = len(drawn)
    Scores(trial, tmp_path, STEPS).score(setting, PROMPTS[0], {"height": 48, "width": 48})
    assert len(drawn) == count + 2  # its dense picture, too
    Scores(trial, tmp_path, STEPS).score(setting, Prompt(PROMPTS[0].text, 99))
    assert len(drawn) == count + 4
    (tmp_path / "drawings.jsonl").write_text("nonsense\n")
    with pytest.raises(ConfigError, match="is no drawing of"):
        Scores(trial, tmp_path, STEPS)


def test_a_strangers_backend_takes_part_by_one_attribute(
    trial: Trial, stranger: Callable[[], None], tmp_path: Path
) -> None:
    stranger()
    found = tune(trial, request(Aim(speedup=1.6, by="blocks"), ["stranger"]), tmp_path / "work")
    assert found.best.setting.backend == "stranger"
    # 1.6 times fewer of 8 steps: 5 of them compute; those at the end count least or most, but both were tried.
    assert found.checks[0].found is not None
    assert found.checks[0].found.blocks_run == 2 * 5 * 12
    assert {"stranger, share, spread", "stranger, share, end"} <= {
        each.candidate.label for each in found.ranked
    }
    assert found.left_out == ["stranger, broken: it raised ValueError: it was never tried"]


def test_an_aim_out_of_reach_is_said_with_the_nearest_that_was_found(
    trial: Trial, stranger: Callable[[], None], tmp_path: Path
) -> None:
    stranger()
    found = tune(trial, request(Aim(speedup=50, by="blocks"), ["stranger"]), tmp_path)
    measured = found.checks[0].found
    assert measured is not None
    assert not found.verdict.reached
    assert "speed-up of 50.00x by blocks run: NOT reached" in found.verdict.aim_text
    assert f"comes to {measured.blocks_speedup:.2f}x" in found.verdict.aim_text
    # It skips 0.8 of the steps at most.
    assert measured.blocks_run == 2 * 2 * 12


def test_the_verdict_names_the_better_one_and_recommends_fewer_steps_where_the_cache_loses(
    trial: Trial, stranger: Callable[[], None], tmp_path: Path
) -> None:
    stranger()
    found = tune(trial, request(Aim(speedup=2.5, by="blocks"), ["stranger"]), tmp_path)
    mine, rival = found.checks[0].found, found.checks[0].rival
    assert mine is not None
    assert rival is not None
    assert rival.blocks_run >= mine.blocks_run
    if mine.psnr.mean > rival.psnr.mean:
        assert "It beats the dense run of equal cost" in found.verdict.rival_text
    else:
        assert "does NOT beat" in found.verdict.rival_text
        assert f"Recommended: no cache, and {found.rival.steps} steps" in found.verdict.rival_text
    assert found.verdict.beats == (mine.psnr.mean > rival.psnr.mean)


def test_a_quality_is_kept_with_the_best_speed_up_there_is(
    trial: Trial, stranger: Callable[[], None], tmp_path: Path
) -> None:
    stranger()
    found = tune(trial, request(Aim(psnr=30, by="blocks"), ["stranger"]), tmp_path)
    kept = [each.result for each in found.ranked if each.result.prompts == 2 and each.result.quality >= 30]
    assert found.best.result.quality >= 30
    assert found.best.result.speedup == max(each.speedup for each in kept) > 1


def test_plans_take_part(trial: Trial, tmp_path: Path) -> None:
    from dit_cache_backends.tune.planned import planned

    candidate = planned(trial, PROMPTS[:2], STEPS, [4, 1], 0.5, tmp_path / "plans.json")
    setting = candidate.setting(1.0, STEPS)
    drawn = trial.draw(PROMPTS[0], setting, steps=STEPS)
    assert (setting.backend, drawn.blocks_run) == ("step_plan", 4 * 12)


def test_videos_are_searched_by_their_frames(stranger: Callable[[], None], tmp_path: Path) -> None:
    stranger()
    with Trial(film()) as trial:
        aim = Aim(speedup=1.9, by="blocks")
        wanted = Request(aim, PROMPTS[:1], PROMPTS[1:2], 6, ["stranger"], plans=False)
        found = tune(trial, wanted, tmp_path)
        frames = found.scores.picture(found.best.setting, PROMPTS[1])
    assert len(frames) == 3
    assert found.checks[0].found is not None
    assert found.checks[0].found.blocks == 6 * 12
    assert found.checks[0].found.blocks_run == 3 * 12
    assert all(check.found for check in found.checks)


def test_a_search_without_time_says_so_and_draws_nothing_but_the_first_picture(
    trial: Trial, drawn: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="in the time that there was"):
        tune(trial, request(Aim(speedup=1.9), ["step_plan", "fb_cache"]), tmp_path, 1e-9)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["demo"], "one of --speedup and --psnr"),
        (["demo", "--speedup", "2", "--strategies", "fbcache"], "Did you mean 'fb_cache'"),
        (["somewhere/else", "--speedup", "2"], "--prompts FILE"),
        (["demo", "--speedup", "2", "--other-size", "big"], "WIDTHxHEIGHT"),
        (["demo", "--speedup", "2", "--time-budget", "soon"], "--time-budget"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(
    arguments: list[str], why: str, tmp_path: Path
) -> None:
    refused = CliRunner().invoke(app, ["tune", *arguments, "--work", str(tmp_path / "work")])
    assert refused.exit_code == 2
    assert why in refused.stderr
    assert not (tmp_path / "work").exists()
