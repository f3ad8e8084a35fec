"""`dit-cache plan` from a folder with a model to a picture drawn by the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dit_cache_backends.cli import app

runner = CliRunner()

PROMPTS = """\
# what is drawn
a large red circle on a blue background
a small orange triangle on a green background

a large purple ring on a white background
a small white cross on a yellow background
"""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    return path


def test_a_plan_is_found_written_reported_and_run(painter: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "plans" / "plan.yaml"
    given = ["plan", str(painter), "--prompts", str(prompts), "--compute", "4", "--num-inference-steps", "6"]
    given += ["--time-budget", "1", "--predictor", "taylorseer 1", "--batch", "3", "--height", "64"]
    given += ["--width", "64", "--device", "cpu", "--output", str(output)]
    result = runner.invoke(app, given)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(output.read_text())
    plan = content["plans"][0]
    assert plan["mask"].count("1") == plan["compute"] == 4
    assert (content["prompts"]["count"], content["prompts"]["held_out"]) == (3, 1)
    assert plan["mask"] in result.output
    said = "better than the dense run of 4 steps"
    assert (f"NOT {said}" in result.output or "alone" in result.output) is not plan["beats_fewer_steps"]
    picture = tmp_path / "picture.png"
    config = f'{{"plan": "{output}"}}'
    drawing = ["generate", "a large red circle on a blue background", "--model", str(painter)]
    drawing += ["--cache-backend", "step_plan", "--cache-config", config, "--num-inference-steps", "6"]
    drawing += ["--height", "64", "--width", "64", "--output", str(picture), "--summary"]
    result = runner.invoke(app, drawing)
    assert result.exit_code == 0, result.output
    skipped = ", ".join(str(step) for step, digit in enumerate(plan["mask"]) if digit == "0")
    assert f": {skipped}\n" in result.output
    # Another search into the same work file is refused before anything is drawn.
    result = runner.invoke(app, [*given, "--fn", "1"])
    assert result.exit_code == 2
    assert "of another search" in result.output


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--predictor", "taylorsee 1"], "no predictor 'taylorsee 1'"),
        (["--prompts", "nowhere.txt"], "cannot be read"),
        (["--held-out", "nowhere.txt"], "cannot be read"),
    ],
)
def test_a_mistake_is_told_before_a_model_is_loaded(prompts: Path, given: list[str], text: str) -> None:
    result = runner.invoke(
        app, ["plan", "no/such/model", "--prompts", str(prompts), "--compute", "4", *given]
    )
    assert result.exit_code == 2
    assert text in result.output
    assert "no/such/model" not in result.output


def test_too_few_prompts_to_keep_one_apart_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n")
    result = runner.invoke(app, ["plan", "demo", "--prompts", str(path), "--compute", "4"])
    assert result.exit_code == 2
    assert "too few to keep some apart" in result.output
