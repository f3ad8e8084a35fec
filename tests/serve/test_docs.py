"""docs/serving.md says what is so, and its code blocks run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.registry import get_cache_backend
from dit_cache_backends.serve.schema import FIELDS
from tests.serve.conftest import Served

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8091"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def rows(head: str) -> list[tuple[str, ...]]:
    """The first table under a heading, its code marks taken off."""
    section = PAGE.split(f"\n## {head}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip().replace("`", "") for cell in line.strip("|").split("|")) for line in lines]


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("console") + blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ ").rstrip("&")) for line in lines if program in line]
    return [each[each.index(program) :] for each in words if program in each]


@pytest.mark.parametrize("snippet", blocks("python"), ids=lambda text: text.splitlines()[-1].strip()[:50])
def test_a_python_snippet_runs(
    served: Served, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ADDRESS in snippet
    namespace: dict[str, Any] = {}
    exec(compile(snippet.replace(ADDRESS, served.url), "serving.md", "exec"), namespace)
    namespace["client"].close()
    assert capsys.readouterr().out


def test_the_curl_command_runs(served: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    (command,) = [block for block in blocks("sh") if block.startswith("curl")]
    done = subprocess.run(
        ["sh", "-c", command.replace(ADDRESS, served.url)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["cache"]["steps"] == 28


def test_the_options_of_every_serve_command_are_understood() -> None:
    found = [each for each in commands("dit-cache") if each[1] == "serve"]
    assert len(found) == 2
    for _, serve, _, *options in found:
        result = CliRunner().invoke(app, [serve, "no such model", *options], env={"HF_HUB_OFFLINE": "1"})
        assert "the model 'no such model' cannot be loaded" in result.stderr


def test_the_cache_settings_of_every_command_are_those_of_a_backend() -> None:
    found = [*commands("dit-cache"), *commands("vllm")]
    assert len(found) >= 7
    for words in found:
        options = dict(pairwise(words))
        assert get_cache_backend(options["--cache-backend"], options.get("--cache-config")) is not None


def test_the_fields_of_a_request_are_all_there_are() -> None:
    named = [name for row in rows("A request") for name in row[0].split(", ")]
    assert sorted(named) == sorted(FIELDS)


def test_the_limits_are_the_commands_own() -> None:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    defaults = {option: each.default for each in serve.params for option in each.opts}
    for option, default, _ in rows("Limits"):
        assert float(defaults[option]) == float(default), option


def test_the_metrics_are_those_that_there_are(served: Served) -> None:
    served.ask(num_inference_steps=1)
    families = {
        family.name: family for family in text_string_to_metric_families(served.http.get("/metrics").text)
    }
    named = {name.removesuffix("_total"): row for row in rows("Metrics") for name in row[0].split(", ")}
    # prometheus-client adds to each counter when it was made.
    assert set(named) == {name for name in families if not name.endswith("_created")}
    for name, row in named.items():
        labels = {label for sample in families[name].samples for label in sample.labels} - {"le"}
        assert set(filter(None, row[1].split(", "))) == labels, name


def test_every_status_that_is_told_is_documented() -> None:
    told = {status for row in rows("Refusals") for status in row[0].split(", ")}
    folder = ROOT / "dit_cache_backends" / "serve"
    used = {
        status
        for path in folder.glob("*.py")
        for status in re.findall(r"Refusal\(\s*(\d{3}),", path.read_text(encoding="utf-8"))
    }
    assert used - {"499"} <= told
    assert "has the status 499" in PAGE


def test_the_load_figures_are_those_that_the_load_test_prints() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import load
    from load_clients import Job, Outcome

    outcome = Outcome(Job(0, "", 1, "64x64", 0, 0, False), 200, 1.0)
    metrics = dict.fromkeys(
        [f"dit_cache_{name}_total" for name in ("steps", "cached_steps", "blocks_run", "blocks_skipped")]
        + [
            f"dit_cache_{name}"
            for name in ("queue_length", "running", "sessions", "held_tensors", "held_bytes")
        ],
        0.0,
    )
    made = load.table(load.Report([outcome], 1.0, metrics, resident=[1] * 8), 16)
    assert [row[0] for row in rows("Under load")] == list(made.columns[0].cells)


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
