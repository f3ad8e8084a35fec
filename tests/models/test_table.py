"""`dit-cache models`, `docs/models.md` and the README's lines say what the cards say and what the tests run."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_cache_backends import BlockList, Card, list_cards, register_card, stack
from dit_cache_backends import models as known
from dit_cache_backends.cli import app
from dit_cache_backends.models import card_for, is_built_in, table
from dit_cache_backends.registry import list_cache_backends
from dit_cache_conformance.tiny import build_transformer

from .test_every_card import EAGER, NAMES, WITHOUT_TINY_MODEL

ROOT = Path(__file__).parents[2]
STALE = f"stale: run `{table.COMMAND}`"


def run(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exit_code == exit_code, result.output
    return result.output


def test_the_written_tables_are_those_of_the_cards() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "docs/models.md").read_text(encoding="utf-8") == table.report(), STALE
    assert table.with_block(readme) == readme, STALE


def test_the_table_claims_what_the_generated_test_runs_and_nothing_else() -> None:
    """`test_every_card.py` runs each strategy of `EAGER` on each tiny model, tea_cache where the card has signals."""
    ran: dict[str, set[str]] = {}
    for name in NAMES:
        card = card_for(build_transformer(name))
        ran[card.transformer] = {each for each in EAGER if each != "tea_cache" or card.signals}
    own = [card for card in list_cards() if is_built_in(card) and card.library not in table.HOSTS]
    claimed = {row.card.transformer: set(row.strategies) for row in table.rows() if row.card in own}
    assert claimed == {name: ran.get(name, set()) for name in claimed}
    assert set(claimed) == {card.transformer for card in own}
    assert not WITHOUT_TINY_MODEL
    assert {*table.RUN, table.RUN_BY_SIGNAL} == set(EAGER)
    assert set(EAGER) <= set(list_cache_backends())


def test_every_card_is_a_line_with_its_stacks_streams_strategies_and_sets() -> None:
    lines = {tuple(line.split()[:2]): line for line in run().splitlines() if line}
    for card in list_cards():
        line = lines[card.transformer, card.library or "any"]
        assert all(blocks.path in line for each in card.stacks for blocks in each.lists)
        assert all(name in line for each in card.stacks for name in each.lists[0].takes)
    assert "cache_dit, dbprune, tea_cache" in lines["FluxTransformer2DModel", "diffusers"]
    assert "flux_dev and 1 more" in lines["FluxTransformer2DModel", "diffusers"]
    assert "long skips" in lines["HunyuanDiT2DModel", "diffusers"]
    assert "held: hint" in lines["WanVACETransformer3DModel", "diffusers"]


def test_classes_of_other_hosts_have_tables_of_their_own_with_the_tests_that_run_them() -> None:
    whole = table.report()
    for library, (release, test, command) in table.HOSTS.items():
        names = [card.transformer for card in list_cards() if card.library == library]
        assert names
        _, _, part = whole.partition(f"## Classes of {release}")
        part, _, _ = part.partition("\n## ")
        assert f"{len(names)} classes" in part
        assert all(f"| `{name}` |" in part for name in names)
        assert test in part
        assert (ROOT / test).is_file()
        assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_card_of_somebody_else_is_not_said_to_have_been_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_cards", {})
    register_card(Card("Mine", (stack(BlockList("blocks", ("x",), "x")),), library="my_models"))
    (line,) = [line for line in run().splitlines() if line.startswith("Mine ")]
    assert "not tried here" in line
    assert "Mine" not in table.report()


def test_the_report_and_the_readme_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    assert run("--report", tmp_path / "models.md", "--readme", readme) == ""
    assert (tmp_path / "models.md").read_text() == table.report()
    assert readme.read_text() == f"before\n\n{table.readme_block()}\n\nafter\n"
    readme.write_text("no marks")
    assert "expected the marks" in run("--readme", readme, exit_code=2)


def test_a_class_alone_shows_its_card_and_the_word_inspect_is_no_class() -> None:
    assert run("FluxTransformer2DModel") == run("show", "fluxtransformer2dmodel")
    assert "PATH|CLASS" in run("inspect", "--help")
