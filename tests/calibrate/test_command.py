"""`dit-cache calibrate` as a user gives it, on a whole pipeline in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dit_cache_backends.calibrate import read_calibration, read_record
from dit_cache_backends.cli import app

TEXTS = ["a red circle", "a small white cross on a yellow background", "two things", "a ring"]
CALL = (
    "--num-inference-steps",
    "6",
    "--height",
    "64",
    "--width",
    "64",
    "--call",
    '{"max_sequence_length": 14}',
)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# to be measured\n" + "\n".join(TEXTS) + "\n")
    return path


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_a_model_is_measured_and_the_file_is_used_by_its_name(
    painter: Path, prompts: Path, tmp_path: Path
) -> None:
    result = calibrate(painter, "--prompts", prompts, "-o", tmp_path / "mine.yaml", *CALL)
    assert result.exit_code == 0, result.output
    found = read_calibration(tmp_path / "mine.yaml")
    assert (found.origin.steps, found.origin.texts) == (6, tuple(TEXTS))
    assert found.origin.provenance.model == painter.name
    assert found.origin.call == {"height": 64, "width": 64, "max_sequence_length": 14}
    for row in found.thresholds["mag_cache"]:
        assert f"{row.value:g}" in result.output
    assert not read_record(tmp_path / "mine.jsonl").missing
    config = f'{{"ratios": "{tmp_path / "mine.yaml"}", "threshold": 0.5}}'
    picture = tmp_path / "picture.png"
    drawn = CliRunner().invoke(
        app,
        ["generate", "a ring", "--model", str(painter), "--cache-backend", "mag_cache", "--cache-config", config,
         "--num-inference-steps", "6", "--height", "64", "--width", "64", "--output", str(picture), "--summary"],
    )  # fmt: skip
    assert drawn.exit_code == 0, drawn.output
    assert picture.exists()


def test_shards_are_measured_apart_and_merged_without_the_model(
    painter: Path, prompts: Path, tmp_path: Path
) -> None:
    whole = calibrate(painter, "--prompts", prompts, "-o", tmp_path / "whole.yaml", *CALL)
    assert whole.exit_code == 0, whole.output
    for part in ("1/2", "2/2"):
        result = calibrate(
            painter, "--prompts", prompts, "-o", tmp_path / "mine.yaml", "--shard", part, *CALL
        )
        assert result.exit_code == 0, result.output
        assert not (tmp_path / "mine.yaml").exists()
    shards = [tmp_path / f"mine.{part}-of-2.jsonl" for part in (1, 2)]
    one = calibrate(shards[1], "-o", tmp_path / "part.json")
    assert one.exit_code == 0
    assert "2 of 4 prompts are in none of the records (1, 3)" in one.output
    assert calibrate(*shards, "-o", tmp_path / "mine.yaml").exit_code == 0
    assert (tmp_path / "mine.yaml").read_text() == (tmp_path / "whole.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("demo",), "give one model and --prompts FILE"),
        (("demo", "other", "--prompts", "PROMPTS"), "give one model and --prompts FILE"),
        (("a.jsonl", "demo"), "records are merged and fitted alone"),
        (("a.jsonl", "--shard", "1/2"), "records are merged and fitted alone"),
        (("a.jsonl",), "the record a.jsonl cannot be read"),
        (("demo", "--prompts", "PROMPTS", "--shard", "3/2"), "such as 2/8; got '3/2'"),
        (("demo", "--prompts", "PROMPTS", "-o", "mine.txt"), ".yaml or .json"),
        (("demo", "--prompts", "nowhere.txt"), "the prompts in nowhere.txt cannot be read"),
        (("demo", "--prompts", "PROMPTS", "--call", '{"heigth": 3}'), "no argument 'heigth'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], text: str, prompts: Path) -> None:
    result = calibrate(*(prompts if each == "PROMPTS" else each for each in arguments))
    assert result.exit_code == 2
    assert text in result.output.replace("\n", " ")


def test_an_empty_list_of_prompts_is_refused(prompts: Path) -> None:
    prompts.write_text("# nothing\n")
    result = calibrate("demo", "--prompts", prompts)
    assert result.exit_code == 2
    assert "expected a list of prompts that is not empty" in result.output
