"""The tables of docs/tea_cache.md, made from the data; `python -m tests.strategies.tea_cache_table` writes them."""

from __future__ import annotations

from pathlib import Path

from dit_cache_backends.models import list_cards
from dit_cache_backends.models.signals import TimeSignal
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED
from dit_cache_backends.strategies.tea_cache_models import USES
from dit_cache_backends.strategies.tea_cache_options import RULES

PAGE = Path(__file__).parents[2] / "docs" / "tea_cache.md"


def signals() -> list[str]:
    rows = ["| transformer | compared by | how it is read |", "|---|---|---|"]
    published = {use.transformer for use in USES}
    for card in list_cards():
        if card.library != "diffusers" or card.transformer not in published:
            continue  # classes of other hosts read the same in their own way
        for signal in card.signals:
            function = signal.embed if isinstance(signal, TimeSignal) else signal.read
            how = " ".join((function.__doc__ or "").split()).rstrip(".")
            rows.append(f"| {card.transformer} | {signal.name} | {how} |")
    return rows


def coefficients() -> list[str]:
    rows = [
        "| name | fitted on | coefficients, highest power first | thresholds and speed-up | taken for | source |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in PUBLISHED.items():
        numbers = ", ".join(map(repr, each.values))
        thresholds = "; ".join(f"{threshold:g} {speed}".strip() for threshold, speed in each.thresholds)
        uses = dict.fromkeys(
            use.transformer
            + (f" under {', '.join(use.rules)}" if use.rules else "")
            + (" with two experts" if use.experts > 1 else "")
            + (f" in {' and '.join(use.pipelines)}" if use.pipelines else "")
            + (" (copied)" if use.donor else "")
            for use in USES
            if use.name == name
        )
        notes = "; ".join(
            filter(
                None,
                [
                    f"on the signal {each.signal}" if each.signal else "",
                    f"R2 {each.r2:g}" if each.r2 is not None else "",
                    each.note,
                ],
            )
        )
        model = f"{each.model} ({notes})" if notes else each.model
        rows.append(f"| `{name}` | {model} | {numbers} | {thresholds} | {', '.join(uses)} | {each.source} |")
    return rows


def rules() -> list[str]:
    rows = [
        "| `rule` | first and last steps | what is summed | skips in a row | threshold where none is given |",
        "|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        window = f"`start_step` {rule.start_step}, `end_step` {rule.end_step}"
        window += "; the set's own, if it has one" if rule.own_window else ""
        summed = "`abs(p(d))`" if rule.absolute else "`p(d)`; a negative value computes"
        row = "any" if rule.most_in_row < 0 else f"at most {rule.most_in_row}"
        threshold = (
            "the lowest published with the set, else 0.2" if rule.threshold is None else f"{rule.threshold}"
        )
        rows.append(f"| `{name}` | {window} | {summed} | {row} | {threshold} |")
    return rows


TABLES = {"rules": rules, "signals": signals, "coefficients": coefficients}


def written(page: str) -> str:
    """The page with its tables made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = before + begin + "\n".join(table()) + "\n" + end + after
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
