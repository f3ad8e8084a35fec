"""Every snippet and command of the README runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_cache_backends import CacheBackend, enable_cache, get_cache_backend
from dit_cache_conformance.tiny import build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def _blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def _commands(program: str) -> list[str]:
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith(f"$ {program} ")]


def _run(source: str) -> dict[str, Any]:
    # Dataclasses look their module up, so the snippet gets one of its own.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "README.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("snippet", _blocks("python"), ids=lambda text: text.strip().splitlines()[0][:60])
def test_a_python_snippet_of_the_readme_runs(
    snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(snippet)
    if "blocks_skipped)" in snippet:
        assert int(capsys.readouterr().out.split()[-1]) > 0


def test_the_ten_lines_skip_blocks_and_restore_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    snippet = next(block for block in _blocks("python") if "load_demo()\nbackend" in block)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10
    namespace = _run(snippet)
    assert namespace["image"].size == (64, 64)
    assert "[6, 8, 9, 10, 12, " in capsys.readouterr().out
    assert not namespace["backend"].is_enabled()


def test_the_strategy_of_the_readme_skips_every_step_that_it_says() -> None:
    snippet = next(block for block in _blocks("python") if "EveryNth(SpanBackend)" in block)
    strategy: type[CacheBackend] = _run(snippet)["EveryNth"]
    tiny = build("flux")
    dense = tiny.run(num_inference_steps=8)
    with enable_cache(tiny.pipe, strategy, every=4) as backend:
        cached = tiny.run(num_inference_steps=8)
        assert backend.summary().cached_steps() == [1, 2, 3, 5, 6, 7]
    assert torch.isfinite(cached).all()
    assert not torch.equal(cached, dense)


def test_the_entry_point_of_the_readme_names_the_group_that_is_searched() -> None:
    (fragment,) = _blocks("toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = [group for group, entries in project["entry-points"].items() if "cache_dit" in entries]
    assert list(tomllib.loads(fragment)["project"]["entry-points"]) == ours == ["dit_cache_backends"]


@pytest.mark.parametrize("command", _commands("make"))
def test_a_make_command_of_the_readme_is_a_target(command: str) -> None:
    target = shlex.split(command)[1]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"README says {command!r}"


@pytest.mark.parametrize("command", _commands("dit-cache"))
def test_a_dit_cache_command_of_the_readme_runs(command: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from dit_cache_backends.cli import app; app()"]
    done = subprocess.run(
        [*program, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_backends_of_the_strategy_table_are_installed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Strategies")[1].split("##")[0]
    names = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert names
    assert all(get_cache_backend(name) is not None for name in names)
