"""What caching saves on a GPU: FLUX.1-dev, Qwen-Image, Wan 2.1 and DiT-XL/2 in their real shapes, with random weights.

No model hub is needed, and only the transformer runs, as a scheduler of diffusers drives it (``gpu_models.py``). Each
model is measured dense, with fewer steps, with static step masks, DBCache, dbprune and TeaCache, with TaylorSeer, with
its blocks or the whole module compiled, and with cache-dit on the same (``gpu_rows.py``), in turns
(``gpu_measure.py``). **The weights are random, so what a dynamic strategy decides means nothing**: read its time beside
the blocks that ran. Static masks decide as they do on the real model.

From the root of the repository, on a machine with one GPU::

    pip install -c constraints.txt -e ".[bench]" cache-dit==1.5.3
    gpu="python benchmarks/gpu.py --json docs/gpu_benchmarks.json"
    python benchmarks/gpu.py --tiny --device cuda                                         # 3: does all of it run here?
    $gpu --models dit --minutes 3                                                         # 3
    $gpu --models flux --minutes 6 --without "*compiled*"                                 # 5
    $gpu --models flux --minutes 8 --rows "*compiled*"                                    # 8
    $gpu --models qwen --minutes 8 --steps 28 --rounds 0 --without "*compiled*"           # 5
    $gpu --models qwen --minutes 8 --steps 28 --rounds 1 --rows "*blocks compiled"        # 7
    $gpu --models wan --minutes 8 --steps 28 --rounds 0 --without "*compiled*"            # 8
    $gpu --models wan --minutes 8 --steps 28 --rounds 1 --rows "*blocks compiled"         # 8

Behind each the minutes that one H200 is expected to take, and they add to one file. They are reckoned and not
measured: at 500 TFLOP/s a dense image takes FLUX 4 s, and of 28 steps (published: 50) Qwen-Image 20 s and Wan 33 s;
DiT's 50 steps take 0.5 s, launching kernels. After ``--minutes`` no run is begun; building the model and the run under
way come on top. The file is written after every row. A row that was not reached says so, as does one that failed. FLUX
takes 32 GB of memory, Qwen-Image 51 GB, Wan and DiT less than 10 GB: a model that does not fit is one row that says so.

``--tiny`` makes the same rows of small models of the same classes; on the CPU too, where torch.compile has its backend
``eager`` and times mean nothing.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu_measure import Bench, Outcome, first_line
from gpu_models import CASES, Case
from gpu_report import LEGEND, NOT_REACHED, WHOLE_MODEL, Document, row_of
from gpu_rows import KINDS, Row, rows_of
from rich.console import Console

from dit_cache_backends.errors import near
from dit_cache_backends.strategies.scm import has_preset

ROOM = 6e9
"""Bytes beside the weights, for what a step holds."""


def measure(case: Case, chosen: Sequence[Row], rounds: int, until: float, document: Document) -> bool:
    """Run every row once, then all in turns while there is time; the document has what there is after each.

    Returns whether the dense row was measured.
    """
    weights = case.parameters * case.dtype.itemsize
    if case.device.type == "cuda":
        free = torch.cuda.mem_get_info(case.device)[0]
        if free < 1.1 * weights + ROOM:
            raise MemoryError(
                f"needs about {(1.1 * weights + ROOM) / 1e9:.0f} GB of GPU memory; {free / 1e9:.0f} GB are free"
            )
    model = case.build()
    case.prepare()
    bench, outcomes = Bench(case, model), list[Outcome]()
    weights = bench.allocated() or weights

    def save() -> None:
        costs = bench.costs
        parts = costs and {"blocks": costs.blocks, "rest": costs.rest, "outside": costs.outside}
        told = {**described(case), "dense_step": parts}
        document.put(case.name, told, [row_of(outcome, outcomes, costs, weights) for outcome in outcomes])

    for row in chosen:
        image = outcomes[0].median or 0.0 if outcomes else 0.0
        if time.monotonic() + image * (2 if row.compiled else 1) > until:
            outcomes.append(Outcome(row, error=NOT_REACHED))
        else:
            outcomes.append(bench.first(row))
            if row.compiled or rounds:
                bench.again(outcomes[-1])
        save()
    for number in range(1, rounds):
        for outcome in outcomes if number % 2 == 0 else reversed(outcomes):
            if time.monotonic() + (outcome.median or 0.0) < until:
                bench.again(outcome)
        save()
    return outcomes[0].median is not None


def described(case: Case) -> dict[str, Any]:
    """What is measured, as plain data."""
    return {
        "title": case.title,
        "transformer": case.transformer,
        "parameters": case.parameters,
        "blocks": case.depth,
        "dtype": str(case.dtype).removeprefix("torch."),
        "steps": case.run_steps,
        "branches": list(case.branches),
        "latents": list(case.latent_size),
        "text_tokens": case.prompt,
    }


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(CASES)}, separated by commas.")] = ",".join(
        CASES
    ),
    rows: Annotated[
        str,
        typer.Option(
            help="Names of rows, separated by semicolons; * stands for anything, and dense is always there."
        ),
    ] = "*",
    without: Annotated[str, typer.Option(help="Names of rows to leave out of these.")] = "",
    rounds: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Timed runs of each row, of which the median counts: 3, or 1 with --tiny. 0: the first "
            "run counts, in which host synchronisations are counted; what is compiled has one more.",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="For each model; what is not reached by then is left out.")
    ] = 9.0,
    steps: Annotated[int | None, typer.Option(min=4, help="Instead of the published ones.")] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the results there, or add them to what is there.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1, ...; cpu with --tiny.")] = "",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Small models of the same classes; on the CPU by default.")
    ] = False,
) -> None:
    """What caching saves on a GPU, beside cache-dit."""
    where = torch.device(device or ("cpu" if tiny else "cuda"))
    if where.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            f"No GPU: torch {torch.__version__} sees no CUDA device. Run it where there is one, or try it on the CPU "
            "with --tiny."
        )
    if where.type == "cpu" and not tiny:
        raise typer.BadParameter(
            "On a CPU these models would take days. Run it where a GPU is, or give --tiny."
        )
    if where.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device {device}: expected cuda, cuda:N, or cpu with --tiny.")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if steps is not None and not has_preset(steps):
        raise typer.BadParameter(
            f"There are no step masks for {steps} steps; there are for 4, 6, and 8 or more."
        )
    names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in CASES:
            raise typer.BadParameter(
                f"There is no model {name!r}.{near(name, CASES)} There are {', '.join(CASES)}."
            )
    device_name = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    cases = [CASES[name](where, dtype, tiny, steps) for name in names]
    chosen = [wanted_rows(case.run_steps, rows, without) for case in cases]
    document = Document(output, device_name, tiny)
    for case in cases:
        document.expect(case.name, case.run_steps)
    turns = (1 if tiny else 3) if rounds is None else rounds
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 130)
    print(document.head())
    failed = []
    for case, its_rows in zip(cases, chosen, strict=True):
        console.print(f"{case.title}: {len(its_rows)} rows, {minutes:g} minutes at most")
        until = time.monotonic() + 60 * minutes
        try:
            measured = measure(case, its_rows, turns, until, document)
        except Exception as error:  # the other models go on
            measured = False
            told = {"row": WHOLE_MODEL, "seconds": None, "error": first_line(error)}
            document.put(case.name, described(case), [told])
        if not measured:
            failed.append(case.title)
        console.print(document.table(case.name))
        print(document.markdown(case.name))
        release()
    print(LEGEND)
    if failed:
        console.print(f"Not even the dense rows could be measured of: {', '.join(failed)}.")
        raise typer.Exit(1)


def wanted_rows(steps: int, patterns: str, without: str = "") -> list[Row]:
    """The rows that are asked for, and the dense ones that they are compared with."""
    known = rows_of(steps)

    def named(several: str) -> set[str]:
        found: set[str] = set()
        for pattern in filter(None, (part.strip().lower() for part in several.split(";"))):
            these = {row.name for row in known if fnmatchcase(row.name.lower(), pattern)}
            if not these:
                names = [row.name for row in known]
                raise typer.BadParameter(
                    f"No row is called {pattern!r}.{near(pattern, names)} There are: {'; '.join(names)}."
                )
            found |= these
        return found

    asked = named(patterns) - named(without)
    asked |= {"dense"} | {f"dense{KINDS[row.compiled]}" for row in known if row.name in asked}
    return [row for row in known if row.name in asked]


def release() -> None:
    """Let go of a model and of what was compiled for it, before the next one is made."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
