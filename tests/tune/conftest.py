"""Searches that are small enough for a test: the shipped model, eight steps, a few prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dit_cache_backends.demo import held_out_prompts
from dit_cache_backends.trials import Drawing, Prompt, Trial

STEPS = 8
PROMPTS = [Prompt(text, number) for number, text in enumerate(held_out_prompts(6))]


@pytest.fixture(scope="session")
def trial() -> Iterator[Trial]:
    with Trial("demo") as trial:
        yield trial


@pytest.fixture
def drawn(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int, str]]:
    """What the model draws from now on, seen from outside: setting, prompt, seed, and the rest of the call."""
    seen: list[tuple[str, str, int, str]] = []
    draw = Trial.draw

    def watched(self: Trial, prompt: Prompt, setting: Any, **more: Any) -> Drawing:
        made = draw(self, prompt, setting, **more)
        seen.append((repr(setting), prompt.text, prompt.seed, repr(sorted(more.items(), key=str))))
        return made

    monkeypatch.setattr(Trial, "draw", watched)
    return seen


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Installs a distribution with one more backend."""

    def install() -> None:
        info = tmp_path / "site" / "stranger-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[dit_cache_backends]\nstranger = tests.tune.stranger:Stranger\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        assert str(tmp_path / "site") in sys.path

    return install
