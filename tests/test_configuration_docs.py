"""docs/configuration.md shows what the commands print, and its tables what the loader does."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.config import check_options
from dit_cache_backends.configuration.dialects import VLLM_OMNI_KEYS
from dit_cache_backends.configuration.environment import VLLM_OMNI, option_variable
from dit_cache_backends.configuration.parsing import SECTIONS
from dit_cache_backends.configuration.settings import find_settings
from dit_cache_backends.configuration.sglang import ENABLED, REQUEST_KEYS, from_environment, from_request
from dit_cache_backends.errors import ConfigWarning
from dit_cache_backends.options import rules_of
from dit_cache_backends.registry import list_cache_backends

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TEXT = PAGE.read_text(encoding="utf-8")
CLASSES = {name: info.cls for name, info in list_cache_backends().items()}


def block(language: str, after: str) -> str:
    found = re.search(
        rf"^```{language}\n(.*?)^```$", TEXT[TEXT.index(after) :], flags=re.MULTILINE | re.DOTALL
    )
    assert found
    return found[1]


def table(after: str) -> list[list[str]]:
    """The rows of the first table behind a heading, without its own head."""
    lines = TEXT[TEXT.index(after) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def test_the_example_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cache.yaml").write_text(block("yaml", "## A file"))
    exports, command = (
        shlex.split(line.removeprefix("$ ")) for line in block("console", "## What a run").splitlines()
    )
    assert exports[0] == "export"
    environment = dict(pair.split("=", 1) for pair in exports[1:])
    result = CliRunner().invoke(app, command[1:], env=environment)
    assert result.exit_code == 0, result.output
    printed = [line for line in result.stdout.splitlines() if not line.endswith(" default")]
    assert block("text", "## What a run").splitlines() == printed


def test_the_python_example_prints_what_the_page_shows() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(block("python", "## From Python"), {})
    assert block("text", "## From Python") == out.getvalue()


def test_the_table_of_sglang_has_every_name_and_says_what_the_loader_does() -> None:
    samples = {
        "scm_compute_bins": [4, 1],
        "scm_cache_bins": [2],
        "scm_policy": "static",
        "scm_preset": "fast",
    }
    variables = set()
    for variable_cell, key_cell, option_cell in table("### SGLang"):
        (variable,), (key,), (option,) = code(variable_cell), code(key_cell), code(option_cell)
        variables.add(variable)
        value = samples.get(key, 1)
        assert from_request({key: value}) == {option: value}
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        environ = {variable: text}
        if "BINS" in variable:
            environ |= {f"SGLANG_CACHE_DIT_SCM_{name}_BINS": "4" for name in ("COMPUTE", "CACHE")}
        assert option in from_environment(environ).options
        twin = variable.replace("DIT_", "DIT_SECONDARY_")
        if not key.startswith("scm"):
            assert from_environment({twin: text}).options == {"secondary": from_environment(environ).options}
    keys = {code(row[1])[0] for row in table("### SGLang")}
    assert keys == set(REQUEST_KEYS) - {"secondary"}
    assert len(variables) == len(keys)


def test_the_table_of_vllm_omni_has_every_key_with_what_it_is_here() -> None:
    rows = {(code(row[0])[0], code(row[1])[0]): row[2] for row in table("### vLLM-Omni")}
    assert set(rows) == {(owner, key) for owner, keys in VLLM_OMNI_KEYS.items() for key in keys}
    for (owner, key), cell in rows.items():
        if owner not in CLASSES:
            assert cell == "no such backend"
            continue
        options = rules_of(CLASSES[owner].Config)
        here = [name for name, (_, rule) in options.items() if key in (name, *rule.aliases)]
        assert (code(cell) or ["refused"]) == (here or ["refused"]), key
        if not here:
            assert check_options(CLASSES[owner].Config, {key: 1}, whole=False)[1]


def test_the_table_of_cache_dit_says_what_the_loader_does() -> None:
    rows = {row[0]: row[1] for row in table("### cache-dit")}
    pairs = {
        **{f"enable_encoder_{name}": "enable_encoder_calibrator" for name in ("foca", "dmd")},
        "calibrator_cache_type": "taylorseer_cache_type",
        "enable_sperate_cfg": "enable_separate_cfg",
    }
    for there, here in pairs.items():
        assert any(there in code(row) and here in code(rows[row]) for row in rows)
        value = "residual" if "type" in there else False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)
            found = find_settings("cache_dit", {there: value}, environment={})
        assert found.options == {here: value}
    for short in ("ulysses", "ring", "tp"):
        found = find_settings(None, {"parallelism_config": {short: 2}}, environment={})
        assert found.parallelism == {f"{short}_size": 2}


def test_the_table_of_variables_has_those_that_are_read() -> None:
    named = {name for row in table("## Variables") for name in code(row[0])}
    assert {"DIT_CACHE_BACKEND", "DIT_CACHE_CONFIG", "DIT_CACHE_OPTION", ENABLED, *VLLM_OMNI} <= named
    assert {option_variable(section) for section in SECTIONS} <= named
