"""What is known of the models as one table: for the terminal, for ``docs/models.md`` and for the README."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dit_cache_backends.models import is_built_in, list_cards
from dit_cache_backends.models.card import HELD, Card, Stack
from dit_cache_backends.strategies.tea_cache_models import USES

RUN = ("cache_dit", "dbprune")
"""The strategies that ``tests/models/test_every_card.py``, and the tests of ``HOSTS``, run on a tiny model of each."""
RUN_BY_SIGNAL = "tea_cache"
"""The one that it runs where the card says what steps are compared by, and that is refused elsewhere."""
UNTRIED = "not tried here"
OWN = "diffusers"
HOSTS = {
    "sglang": ("SGLang-Diffusion 0.5.23", "tests/hosts/sglang/test_cards.py", "make test-sglang"),
    "vllm_omni": ("vLLM-Omni 0.30", "tests/hosts/vllm_omni/test_cards.py", "make test-vllm-omni"),
}
"""Libraries that bring classes of their own, by their package: the release, what runs the strategies on them, how."""

BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
COMMAND = "dit-cache models --report docs/models.md --readme README.md"


OTHERS = """\
## A class that is not here

`dit-cache models inspect PATH|CLASS`, or `inspect_transformer(module, **inputs)` for any module at hand, runs one
forward and prints a card to paste. That a tensor which a block returned *is* the next block's argument proves where
it goes; work that the model does between its blocks is followed too. What could not be seen is marked as a guess,
and the new card is tried: a step is skipped, and a still input has to come out the same.

The card goes into `enable_cache(pipe, ..., card=card)` or `register_card(card)`, or into a package that names it,
or a list of cards, by an entry point of the group `dit_cache_backends.models`. Two packages with different cards
for one class are an error that names both.

A wrong card is refused in the first forward, with the block and the field to correct: a path or a parameter that is
not there, another form of return, streams in another order (by shape, and where shapes are equal by which tensor
goes where), a stream that the blocks do not hand on, lists in another order than they are called. What this cannot
see, and `inspect` does: two lists joined to one stack that have equal shapes, follow each other, and do not feed
each other.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One card, in words."""

    card: Card
    stacks: str
    streams: str
    strategies: tuple[str, ...]
    """Those that are run on a tiny model of the class; none of a card that is not this package's."""
    coefficients: tuple[str, ...]
    """Published sets of TeaCache coefficients, for all models of the class."""
    notes: str


def rows() -> list[Row]:
    """A row for each known card, by class name."""
    return [_row(card) for card in list_cards()]


def _row(card: Card) -> Row:
    strategies = (*RUN, *((RUN_BY_SIGNAL,) if card.signals else ())) if is_built_in(card) else ()
    sets = dict.fromkeys(use.name for use in USES if use.transformer == card.transformer)
    return Row(
        card,
        "; ".join(_stack(each) for each in card.stacks),
        "; ".join(", ".join(each.lists[0].takes) for each in card.stacks),
        strategies,
        tuple(sets),
        "; ".join(_notes(card)),
    )


def _stack(stack: Stack) -> str:
    return (" / " if stack.alternate else " + ").join(each.path for each in stack.lists)


def _notes(card: Card) -> Iterable[str]:
    if any(stack.alternate for stack in card.stacks):
        yield "blocks of both lists in turns"
    if any(stack.long_skips for stack in card.stacks):
        yield "long skips"
    held = [
        name.removeprefix(HELD)
        for stack in card.stacks
        for blocks in stack.lists
        for name in ((blocks.gives,) if isinstance(blocks.gives, str) else blocks.gives)
        if name.startswith(HELD)
    ]
    if held:
        yield f"held: {', '.join(dict.fromkeys(held))}"
    if card.arrange is not None:
        yield "stacks follow the configuration"
    for argument, values in card.must_run:
        yield f"runs in full where {argument} is {' or '.join(map(repr, values))}"
    if card.writes_in_place:
        yield "blocks write into their inputs"


def columns() -> list[tuple[str, ...]]:
    """For the terminal, with the head."""
    head = ("CLASS", "LIBRARY", "STACKS OF BLOCKS", "STREAMS", "STRATEGIES", "TEA_CACHE SETS", "NOTES")
    return [head, *map(_cells, rows())]


def _cells(row: Row) -> tuple[str, ...]:
    sets = row.coefficients
    return (
        row.card.transformer,
        row.card.library or "any",
        row.stacks,
        row.streams,
        ", ".join(row.strategies) or UNTRIED,
        (sets[0] + (f" and {len(sets) - 1} more" if len(sets) > 1 else "")) if sets else "-",
        row.notes,
    )


def report() -> str:
    """``docs/models.md``: the cards of this package and the counts."""
    built_in = _of(OWN)
    lines = [
        "# Models",
        "",
        f"Made by `{COMMAND}`; a test fails where it is stale.",
        "",
        f"{len(built_in)} transformer classes of diffusers have a card. Each has a tiny model with random weights on "
        "which `tests/models/test_every_card.py` runs it:",
        "",
        "| what was run | classes |",
        "|---|---|",
        *(f"| `{name}` | {_count(built_in, name)} |" for name in (*RUN, RUN_BY_SIGNAL)),
        f"| `tea_cache` refused, as the card says no signal | {len(built_in) - _count(built_in, RUN_BY_SIGNAL)} |",
        "",
        f"{sum(bool(row.coefficients) for row in built_in)} classes have published coefficients for `tea_cache`, "
        f"{len({name for row in built_in for name in row.coefficients})} sets; the others take `coefficients: "
        "identity` or your own ([tea_cache.md](tea_cache.md)). A set is of one model of the class, not of all.",
        "",
        "Stacks: `a + b` run one after the other as one, `a / b` in turns, `a; b` are two stacks. Streams: what runs "
        "through them, the denoised one first. Lists that are not named, such as refiners of the text, always run.",
        "",
        *_table(built_in),
    ]
    for library, (release, test, command) in HOSTS.items():
        of_host = _of(library)
        if of_host:
            lines += [
                "",
                f"## Classes of {release}",
                "",
                f"{len(of_host)} classes of its own, most under the names of diffusers'; which is meant follows from "
                f"the package a class comes from. On tiny models of the real package `{test}` runs the strategies "
                f"(`{command}`).",
                "",
                *_table(of_host),
            ]
    return "\n".join([*lines, "", OTHERS])


def _of(library: str) -> list[Row]:
    return [row for row in rows() if row.strategies and row.card.library == library]


def _table(of_library: Iterable[Row]) -> list[str]:
    lines = [
        "| class | stacks of blocks | streams | strategies | sets of `tea_cache` | notes |",
        "|---|---|---|---|---|---|",
    ]
    for row in of_library:
        cells = [
            f"`{row.card.transformer}`",
            _quoted(row.stacks),
            _quoted(row.streams),
            ", ".join(row.strategies),
            ", ".join(row.coefficients),
            row.notes.replace("|", "\\|"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _count(built_in: Sequence[Row], strategy: str) -> int:
    return sum(strategy in row.strategies for row in built_in)


def _quoted(cell: str) -> str:
    return "; ".join(f"`{part}`" for part in cell.split("; "))


def readme_block() -> str:
    """The few lines of the README, with the marks around them."""
    built_in = _of(OWN)
    names = sorted({_short(row.card.transformer) for row in built_in}, key=str.lower)
    text = (
        f"{len(built_in)} transformer classes of diffusers: {', '.join(names)}. On each of them `cache_dit` and "
        f"`dbprune` are run in the test suite, on {_count(built_in, RUN_BY_SIGNAL)} `tea_cache`; "
        "[docs/models.md](docs/models.md) has the table."
    )
    lines = textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)
    return "\n".join([BEGIN, *lines, END])


def _short(name: str) -> str:
    for end in ("Transformer2DModel", "Transformer3DModel", "Transformer1DModel", "Transformer", "Model"):
        if name.endswith(end) and name != end and name.removesuffix(end):
            return name.removesuffix(end)
    return name


def with_block(text: str) -> str:
    """A README with its block made anew.

    Raises:
        ValueError: if it has no marks.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected the marks {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return before + readme_block() + rest.split(END)[1]
