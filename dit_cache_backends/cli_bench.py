"""``dit-cache bench``: what a cache costs and saves on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dit_cache_backends.terminal import quiet, readable_errors


def bench(
    shape: Annotated[
        str, typer.Option(help="Where the steps are timed: flux-512, python-bound, demo-like or all.")
    ] = "all",
    sections: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these parts; can be given several times."),
    ] = None,
    kinds: Annotated[
        str, typer.Option(metavar="TEXT", help="Only steps of a kind whose name contains this.")
    ] = "",
    rounds: Annotated[int | None, typer.Option(min=1, help="Of the timings; enough unless said.")] = None,
    peers: Annotated[
        bool, typer.Option(help="Beside cache-dit and FirstBlockCache, where installed.")
    ] = True,
    fast: Annotated[
        bool, typer.Option("--quick", help="Small models and few rounds: does it work, not how fast is it.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the report to this Markdown file, its plots beside it.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write what was measured to this file.")] = None,
    measured: Annotated[
        Path | None,
        typer.Option("--from", help="Measure nothing: write the report of this file, which --json wrote."),
    ] = None,
) -> None:
    """Time the steps of a cached model beside the plain one and beside other libraries, in turns."""
    with readable_errors("demo,bench"):
        quiet()
        from dit_cache_backends.bench.asked import Asked, chosen_shapes
        from dit_cache_backends.bench.peers import installed
        from dit_cache_backends.bench.run import again, main

        if measured is not None:
            again(measured, output or measured.with_suffix(".md"))
            return
        asked = Asked(
            shapes=chosen_shapes(shape),
            kinds=kinds,
            rounds=rounds,
            quick=fast,
            cache_dit=peers and installed("cache-dit") is not None,
            first_block=peers,
        )
        main(asked, sections or (), output, json)
