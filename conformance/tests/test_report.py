"""The door for the terminal: a table by group, remedies, JSON, an exit status."""

from __future__ import annotations

import json
import re

import broken
import pytest
from typer.testing import CliRunner

from dit_cache_backends import ConfigError
from dit_cache_backends.cli import app
from dit_cache_conformance import CHECKS, GROUPS, check_backend, select

ONLY = ["configuration", "a_summary_can_be_read"]


def test_a_report_is_a_table_by_group_with_the_time_of_each_check() -> None:
    text = str(check_backend(broken.Honest, only=ONLY))
    lines = text.splitlines()
    assert lines.index("configuration") < lines.index("summary")
    assert re.search(r"every option is read +passed +\d+\.\d\d s", text)
    assert lines[-1].startswith("honest: ")
    assert "If this fails" not in text


def test_a_failed_check_comes_with_what_was_found_and_the_remedy() -> None:
    report = check_backend(broken.IgnoresAnOption, only=ONLY)
    text = " ".join(str(report).split())
    assert "every option is read FAILED" in text
    assert "nothing reads patience_of_the_cache" in text
    assert CHECKS["every_option_is_read"].remedy in text
    assert "1 failed" in text
    assert not report.ok


def test_models_that_fail_alike_are_named_together_and_others_apart() -> None:
    report = check_backend(
        broken.AlwaysDense, only="an_eager_configuration_skips", models=["flux", "wan22", "sd3"]
    )
    assert report.results[0].message == "flux, sd3: all of 48 blocks ran\nwan22: all of 96 blocks ran"


def test_a_check_that_a_backend_is_not_capable_of_is_left_out_with_the_reason() -> None:
    report = check_backend(broken.Honest, only="ranks_decide_as_one_process_would")
    assert report.ok
    assert report.results[0].message == "needs the capability rank_agreement"


def test_a_report_as_data_is_json_and_says_what_the_table_says() -> None:
    data = json.loads(json.dumps(check_backend(broken.IgnoresAnOption, only=ONLY).to_dict()))
    assert [each["name"] for each in data["checks"]] == [each.name for each in select(ONLY)]
    (failed,) = [each for each in data["checks"] if each["status"] == "failed"]
    assert (failed["name"], data["ok"]) == ("every_option_is_read", False)
    assert failed["remedy"].startswith("If this fails, ")


def test_the_groups_are_in_their_order_and_each_has_checks() -> None:
    groups = [each.group for each in CHECKS.values()]
    assert list(dict.fromkeys(groups)) == list(GROUPS)


@pytest.mark.parametrize("wrong", [{"only": "exactnes"}, {"models": ["fluxx"]}])
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Did you mean"):
        check_backend(broken.Honest, **wrong)  # type: ignore[arg-type]


def test_the_command_prints_the_report_and_its_exit_status_is_the_verdict() -> None:
    done = CliRunner().invoke(app, ["check", "cache-dit", "--only", "configuration"])
    assert done.exit_code == 0, done.output
    assert "cache_dit: " in done.output
    never = '{"residual_diff_threshold": 0.9, "max_warmup_steps": 1}'
    only = "a_never_skipping_configuration_runs_every_block"
    done = CliRunner().invoke(app, ["check", "cache_dit", "--never", never, "--only", only])
    assert done.exit_code == 1, done.output


def test_the_command_writes_json_alone_to_standard_output() -> None:
    done = CliRunner().invoke(app, ["check", "tea_cache", "--json", "--only", "every_option_is_documented"])
    assert json.loads(done.stdout)["ok"] is True


def test_the_command_puts_options_into_every_run() -> None:
    done = CliRunner().invoke(
        app,
        [
            "check",
            "cache_dit",
            "--cache-config",
            '{"Fn_compute_blocks": 99}',
            "--only",
            "the_first_step_runs",
        ],
    )
    assert done.exit_code == 1
    assert "leave no block that could be skipped" in " ".join(done.output.split())


@pytest.mark.parametrize("arguments", [["cache_dti"], ["cache_dit", "--only", "exactnes"]])
def test_a_mistake_on_the_command_line_is_told_in_a_line(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["check", *arguments])
    assert done.exit_code == 2
    assert "Did you mean" in done.output
