"""Cards of other packages: real distributions, laid out as pip does, in a folder on the path."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_cache_backends import BlockList, Card, CardError, enable_cache, list_cards, register_card, stack
from dit_cache_backends import models as known
from dit_cache_backends.cli import app
from dit_cache_backends.models import card_for, card_problems, find_card
from dit_cache_conformance.tiny import build_transformer

from ..engine.runs import STILL, relative
from ..engine.toys import Toy, adds, image

pytestmark = pytest.mark.usefixtures("as_in_a_run")

Install = Callable[..., None]

CARD = """
from dit_cache_backends import BlockList, Card, stack

def card(name, path="blocks", library=None):
    block = BlockList(path, takes=("hidden_states",), gives="hidden_states")
    return Card(name, (stack(block),), library=library)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one module and entry points to it; a registered card is forgotten afterwards."""
    modules: list[str] = []
    before = dict(known._cards)

    def install(distribution: str, source: str, version: str = "1.0", *, target: str = ":CARDS") -> None:
        site, module = tmp_path / distribution, f"{distribution}_module"
        info = site / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(CARD + textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[dit_cache_backends.models]\nmine = {module}{target}\n")
        monkeypatch.syspath_prepend(site)
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    known._cards.clear()
    known._cards.update(before)
    importlib.invalidate_caches()


def shown() -> str:
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "cards", ["card('Toy')", "[card('Toy'), card('Other')]", "(card(name) for name in ('Other', 'Toy'))"]
)
def test_a_card_or_several_come_with_a_package_and_work(install: Install, cards: str) -> None:
    model = Toy(*[adds] * 4)
    assert find_card(Toy) is None
    install("toys", f"CARDS = {cards}")
    plain = model(image())[0]
    with enable_cache(model, "cache_dit", residual_diff_threshold=9.0, max_warmup_steps=1) as backend:
        for step in range(3):
            with backend.step(step, 9):
                assert relative(model(image())[0], plain) <= STILL
        assert backend.summary().cached_steps() == [1, 2]
    assert "Toy" in {card.transformer for card in list_cards()}
    assert "\nToy " in shown()
    assert card_problems() == []


def test_a_package_that_is_gone_has_no_cards_any_more(install: Install) -> None:
    install("toys", "CARDS = card('Toy')")
    assert find_card(Toy) is not None
    sys.path.remove(next(entry for entry in sys.path if entry.endswith("toys")))
    importlib.invalidate_caches()
    assert find_card(Toy) is None


def test_different_cards_for_one_class_are_an_error_that_names_both_distributions(install: Install) -> None:
    install("first", "CARDS = card('Toy')", "1.1")
    install("second", "CARDS = card('Toy', 'layers')", "2.2")
    with pytest.raises(CardError) as caught:
        card_for(Toy(adds))
    for part in (
        "Toy",
        "first 1.1 (first_module:CARDS)",
        "second 2.2 (second_module:CARDS)",
        "register_card",
    ):
        assert part in str(caught.value)
    assert find_card(type(build_transformer("flux"))) is not None
    assert card_problems() == [str(caught.value)]
    assert str(caught.value) in shown()


def test_equal_cards_from_two_packages_agree(install: Install) -> None:
    install("first", "CARDS = card('Toy')")
    install("second", "CARDS = [card('Toy')]")
    assert find_card(Toy) is not None
    assert card_problems() == []


def test_a_card_that_contradicts_a_built_in_one_names_this_distribution_too(install: Install) -> None:
    flux = type(build_transformer("flux"))
    built_in = find_card(flux)
    assert built_in is not None
    install("rival", "CARDS = card('FluxTransformer2DModel', 'transformer_blocks', 'diffusers')")
    with pytest.raises(CardError, match=r"from dit-cache-backends [\w.]+ and from rival 1.0"):
        find_card(flux)
    assert "rival 1.0" in shown()
    register_card(built_in, replace=True)
    assert find_card(flux) is built_in
    assert card_problems() == []


def test_a_registered_card_comes_before_those_of_packages_once_it_is_to_replace_them(
    install: Install,
) -> None:
    install("toys", "CARDS = card('Toy')")
    own = Card("Toy", (stack(BlockList("layers", ("hidden_states",), "hidden_states")),), library=None)
    with pytest.raises(CardError, match="replace=True"):
        register_card(own)
    register_card(own, replace=True)
    assert find_card(Toy) is own


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import a_library_nobody_has", ":CARDS", "No module named 'a_library_nobody_has'"),
        ("raise SystemExit(3)", ":CARDS", "SystemExit: 3"),
        ("assert False, 'only on Mondays'", ":CARDS", "AssertionError: only on Mondays"),
        ("def broken(:", ":CARDS", "SyntaxError"),
        ("CARDS = card('Toy', gives='x')", ":CARDS", "TypeError"),
        ("CARDS = [card('Toy'), 'Toy']", ":CARDS", "'Toy'"),
        ("CARDS = 7", ":CARDS", "expected a dit_cache_backends.Card or an iterable of them, but it is 7"),
        ("CARDS = []", ":CARDS", "expected a dit_cache_backends.Card"),
        ("CARDS = (1 / 0 for _ in range(2))", ":CARDS", "ZeroDivisionError"),
        ("x = 1", ":CARDS", "CARDS"),
    ],
)
def test_a_broken_package_hides_no_other_and_is_shown_with_its_reason(
    install: Install, source: str, target: str, reason: str
) -> None:
    install("bad", source, target=target)
    install("toys", "CARDS = card('Toy')")
    assert find_card(Toy) is not None
    (problem,) = card_problems()
    assert "bad 1.0 (bad_module:CARDS)" in problem
    assert reason in problem
    assert "Repair or uninstall bad" in problem
    text = shown()
    assert problem in text
    assert "\nToy " in text


def test_a_package_that_asks_for_a_card_while_it_is_imported_gets_an_answer(install: Install) -> None:
    install(
        "eager", "from dit_cache_backends import list_cards\nCARDS = card('Toy' if list_cards() else 'None')"
    )
    assert find_card(Toy) is not None
    assert card_problems() == []


def test_importing_this_package_imports_no_other_and_looks_for_no_card(
    install: Install, tmp_path: Path
) -> None:
    install("toys", "CARDS = card('Toy')")
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import dit_cache_backends\n"
        "assert 'toys_module' not in sys.modules\n"
        "assert 'stevedore' not in sys.modules\n"
        "dit_cache_backends.list_cards()\n"
        "assert 'toys_module' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "toys")], check=True)
