"""``dit-cache check``: the report in a terminal, or as JSON."""

from __future__ import annotations

import json as _json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from dit_cache_conformance.check import Result
from dit_cache_conformance.runner import check_backend, select


def run(
    name: str,
    config: Mapping[str, Any] | None,
    eager: Mapping[str, Any] | None,
    never: Mapping[str, Any] | None,
    only: Sequence[str] = (),
    json: bool = False,
) -> bool:
    """Check a backend, print what came of it, and say whether every promise was kept."""
    if json:
        report = check_backend(name, config=config, eager=eager, never=never, only=only)
        print(_json.dumps(report.to_dict(), indent=2))
        return report.ok
    console, total = Console(), len(select(only))
    with console.status(f"{name}: {total} checks") as status:
        done = 0

        def progress(result: Result) -> None:
            nonlocal done
            done += 1
            status.update(f"{name}: {done} of {total} checks; {result.check.name.replace('_', ' ')}")

        report = check_backend(name, config=config, eager=eager, never=never, only=only, progress=progress)
    console.print(report)
    return report.ok
