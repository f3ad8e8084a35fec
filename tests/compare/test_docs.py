"""What docs/compare-and-tune.md says there is, there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer.main

from dit_cache_backends.cli import app
from dit_cache_backends.compare.measures import MEASURES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "compare-and-tune.md").read_text(encoding="utf-8")


def test_every_option_and_command_of_the_page_exists() -> None:
    command = typer.main.get_command(app)
    commands = command.commands  # type: ignore[attr-defined]
    known = {
        name: {o for p in each.params for o in (*p.opts, *p.secondary_opts)}
        for name, each in commands.items()
    }
    _, compare, tune = PAGE.split("\n## ", 2)
    halves = {"compare": compare, "tune": tune}
    for name, text in halves.items():
        said = {each for each in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if each != "--cache-config"}
        assert said <= known[name], name
    for line in re.findall(r"^\$ (dit-cache .*)$", PAGE, flags=re.MULTILINE):
        _, name, *arguments = shlex.split(line)
        assert {each for each in arguments if each.startswith("--")} <= known[name]


def test_the_measures_of_the_page_are_those_there_are() -> None:
    rows = [
        re.findall(r"`(\w+)`", line.split("|")[1]) for line in PAGE.splitlines() if line.startswith("| `")
    ]
    assert sorted(name for row in rows for name in row) == sorted(MEASURES)


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE)
    assert links
    assert all((DOCS / link).exists() for link in links)
