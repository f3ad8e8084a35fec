"""Many clients at once on one server: is every picture right, is anything left behind, does memory grow?

``make load`` runs it: it starts ``dit-cache serve`` on the loopback, asks 200 times with 16 requests at once and mixed
settings, leaves in the middle of one in ten, and compares every picture with the one drawn alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import psutil
import typer
from load_clients import CACHES, Job, Outcome, ask, make_jobs
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

GROWTH = 32 * 2**20
"""Bytes by which the server may be larger at the end than in the second quarter of the requests."""


@dataclass
class Report:
    """What a run has shown."""

    outcomes: list[Outcome]
    seconds: float
    metrics: dict[str, float]
    resident: list[int] = field(default_factory=list)
    """Bytes of the server after each request that ended."""
    wrong: list[Job] = field(default_factory=list)
    compared: int = 0

    @property
    def answered(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.job.leaves_after is None]

    @property
    def held(self) -> dict[str, float]:
        """What the server holds when nobody asks any more."""
        names = ("queue_length", "running", "sessions", "held_tensors", "held_bytes")
        return {name: self.metrics[f"dit_cache_{name}"] for name in names}

    @property
    def growth(self) -> int:
        """Bytes from the median of the second quarter of the requests to that of the last."""
        quarter = len(self.resident) // 4
        if not quarter:
            return 0
        return int(
            statistics.median(self.resident[-quarter:])
            - statistics.median(self.resident[quarter : 2 * quarter])
        )

    def problems(self) -> list[str]:
        """Everything that should not be."""
        found = [
            f"request {each.job.number}: {each.status} {each.message}"
            for each in self.answered
            if each.status != 200
        ]
        found += [f"request {job.number}: another picture than alone" for job in self.wrong]
        found += [f"{name} is {value:g} after the last request" for name, value in self.held.items() if value]
        if self.growth > GROWTH:
            found.append(f"the server grew by {self.growth / 2**20:.0f} MiB")
        return found


def compare(report: Report, pipeline: Any) -> None:
    """Draw every picture that was returned once alone, on a pipeline that serves nobody, and note what differs."""
    from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams

    returned = [each for each in report.outcomes if each.pixels is not None]
    alone: dict[tuple[object, ...], np.ndarray] = {}
    for number, (backend, config) in enumerate(CACHES):
        with Omni(pipeline, backend, config) as omni:
            for job in (each.job for each in returned if each.job.cache == number):
                if job.picture not in alone:
                    width, height = map(int, job.size.split("x"))
                    params = OmniDiffusionSamplingParams(
                        width=width,
                        height=height,
                        num_inference_steps=job.steps,
                        seed=job.seed,
                        output_type="pil",
                    )
                    output = omni.generate(job.prompt, params, use_tqdm=False)[0]
                    alone[job.picture] = np.asarray(output.images[0])
    for each in returned:
        report.compared += 1
        if not np.array_equal(each.pixels, alone[each.job.picture]):
            report.wrong.append(each.job)


def read_metrics(url: str) -> dict[str, float]:
    """The sums of the server's metrics over their labels; waits until nothing is under way."""
    ends = time.monotonic() + 60
    while True:
        totals: Counter[str] = Counter()
        for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text):
            for sample in family.samples:
                totals[sample.name] += sample.value
        busy = sum(totals[f"dit_cache_{name}"] for name in ("running", "queue_length", "sessions"))
        if not busy or time.monotonic() > ends:
            return dict(totals)
        time.sleep(0.05)


def table(report: Report, at_once: int) -> Table:
    """The figures of a run."""
    answered = [each for each in report.answered if each.status == 200]
    seconds = sorted(each.seconds for each in answered)
    statuses = Counter(each.status for each in report.outcomes)
    steps, hits = report.metrics["dit_cache_steps_total"], report.metrics["dit_cache_cached_steps_total"]
    rows: list[tuple[str, str]] = [
        ("requests, at once", f"{len(report.outcomes)}, {at_once}"),
        (
            "answered 200, client left, other",
            f"{statuses[200]}, {statuses[499]}, {len(report.outcomes) - statuses[200] - statuses[499]}",
        ),
        ("pictures compared with the one drawn alone", str(report.compared)),
        ("of them different in a bit", str(len(report.wrong))),
        ("seconds in all, pictures a second", f"{report.seconds:.1f}, {len(answered) / report.seconds:.1f}"),
        (
            "latency, median and 95th percentile",
            f"{seconds[len(seconds) // 2]:.2f} s, {seconds[int(len(seconds) * 0.95)]:.2f} s",
        ),
        ("denoising steps, of them cached", f"{steps:.0f}, {hits:.0f}"),
        (
            "blocks run, skipped (of cached requests)",
            ", ".join(
                f"{report.metrics[f'dit_cache_blocks_{kind}_total']:.0f}" for kind in ("run", "skipped")
            ),
        ),
        (
            "left at the end: " + ", ".join(name.replace("_", " ") for name in report.held),
            ", ".join(f"{value:.0f}" for value in report.held.values()),
        ),
    ]
    if report.resident:
        quarter = len(report.resident) // 4
        rows.append(
            (
                "server's memory after a quarter, a half, all",
                ", ".join(f"{report.resident[at] / 2**20:.0f} MiB" for at in (quarter, 2 * quarter, -1)),
            )
        )
        rows.append(("growth, second quarter to last", f"{report.growth / 2**20:+.1f} MiB"))
    made = Table("what", "figure")
    for row in rows:
        made.add_row(*row)
    return made


def _started(process: subprocess.Popen[str]) -> str:
    told = []
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            # It would stop once nobody reads what it tells.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[1]
    raise SystemExit("the server did not start:\n" + "".join(told))


def _markdown(made: Table) -> Iterable[str]:
    columns = [list(column.cells) for column in made.columns]
    yield f"| {' | '.join(str(column.header) for column in made.columns)} |"
    yield "| --- | --- |"
    for row in zip(*columns, strict=True):
        yield f"| {' | '.join(map(str, row))} |"


def main(
    requests: int = 200, at_once: int = 16, cancelled: float = 0.1, seed: int = 0, markdown: bool = False
) -> None:
    """Start a server, load it, and print the figures; the exit status is 1 where something is wrong."""
    from dit_cache_backends.demo import load_demo
    from dit_cache_backends.terminal import quiet

    command = [sys.executable, "-c", "from dit_cache_backends.cli import app; app()", "serve", "--port", "0"]
    command += ["--cache-backend", "cache_dit", "--log-level", "info"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    resident: list[int] = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            url = _started(server)
            process = psutil.Process(server.pid)
            jobs = make_jobs(requests, cancelled, seed)
            asked = ask(url, jobs, at_once, lambda: resident.append(process.memory_info().rss))
            outcomes, seconds = asyncio.run(asked)
            metrics = read_metrics(url)
            server.terminate()
            status = server.wait(60)
        finally:
            server.kill()
    report = Report(outcomes, seconds, metrics, resident)
    quiet()
    compare(report, load_demo())
    made = table(report, at_once)
    if markdown:
        print("\n".join(_markdown(made)))
    else:
        Console(width=120).print(made)
    problems = report.problems() + ([f"the server's exit status is {status}"] if status else [])
    for problem in problems:
        print(problem, file=sys.stderr)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    typer.run(main)
