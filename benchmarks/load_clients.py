"""The clients of a load test: what they ask for, and what comes back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from PIL import Image

PATH = "/v1/images/generations"

CACHES: tuple[tuple[str, dict[str, Any] | None], ...] = (
    ("none", None),
    ("cache_dit", {"max_warmup_steps": 2, "residual_diff_threshold": 0.3}),
    ("cache_dit", {"max_warmup_steps": 2, "residual_diff_threshold": 0.3, "enable_taylorseer": True}),
    ("dbprune", {"max_warmup_steps": 2, "residual_diff_threshold": 0.1}),
    ("tea_cache", {"rel_l1_thresh": 0.2, "coefficients": "identity"}),
)
PROMPTS = (
    "a large red circle on a blue background",
    "a small orange triangle on a green background",
    "a yellow ring left of a blue circle on a black background",
)
SIZES = ("64x64", "64x64", "48x80")


@dataclass(frozen=True)
class Job:
    """One request, and whether its client stays for the answer."""

    number: int
    prompt: str
    steps: int
    size: str
    seed: int
    cache: int
    """Its place in ``CACHES``."""
    stream: bool
    leaves_after: int | None = None
    """Steps that a client who leaves has seen; 0: it leaves as soon as it has asked."""

    def body(self) -> dict[str, Any]:
        backend, config = CACHES[self.cache]
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "num_inference_steps": self.steps,
            "size": self.size,
            "seed": self.seed,
            "cache_backend": backend,
            "stream": self.stream,
        }
        return body if config is None else body | {"cache_config": config}

    @property
    def picture(self) -> tuple[object, ...]:
        """What decides the picture."""
        return (self.prompt, self.steps, self.size, self.seed, self.cache)


@dataclass
class Outcome:
    """What came of a job."""

    job: Job
    status: int
    seconds: float
    pixels: np.ndarray | None = None
    blocks_skipped: int = 0
    message: str = ""


def make_jobs(
    count: int, cancelled: float = 0.1, seed: int = 0, steps: Sequence[int] = (4, 6, 8, 12)
) -> list[Job]:
    """``count`` requests of mixed settings; the share ``cancelled`` of their clients leaves."""
    rng = random.Random(seed)
    leavers = set(rng.sample(range(count), round(count * cancelled)))
    jobs = []
    for number in range(count):
        total = rng.choice(steps)
        stream = rng.random() < 0.5
        leaves = None
        if number in leavers:
            leaves = rng.randrange(1, total) if stream else 0
        jobs.append(
            Job(
                number,
                rng.choice(PROMPTS),
                total,
                rng.choice(SIZES),
                rng.randrange(4),
                rng.randrange(len(CACHES)),
                stream,
                leaves,
            )
        )
    return jobs


async def ask(
    url: str, jobs: Sequence[Job], at_once: int, ended: Callable[[], object] = lambda: None
) -> tuple[list[Outcome], float]:
    """Ask for every job, ``at_once`` at a time; ``ended`` is called after each."""
    room = asyncio.Semaphore(at_once)
    outcomes: list[Outcome] = []
    limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one(job: Job) -> None:
            async with room:
                began = time.perf_counter()
                outcome = await (_stream(client, job) if job.stream else _whole(client, job))
                outcome.seconds = time.perf_counter() - began
                outcomes.append(outcome)
                ended()

        began = time.perf_counter()
        await asyncio.gather(*(one(job) for job in jobs))
        return outcomes, time.perf_counter() - began


async def _whole(client: httpx2.AsyncClient, job: Job) -> Outcome:
    # Who leaves stays long enough for the request to be on its way, not for its picture.
    patience = None if job.leaves_after is None else 0.02
    try:
        answer = await asyncio.wait_for(client.post(PATH, json=job.body()), patience)
    except asyncio.TimeoutError:
        return Outcome(job, 499, 0)
    if answer.status_code != 200:
        return Outcome(job, answer.status_code, 0, message=answer.text)
    content = answer.json()
    return Outcome(
        job, 200, 0, _pixels(content["data"][0]["b64_json"]), content["cache"]["blocks_skipped"] or 0
    )


async def _stream(client: httpx2.AsyncClient, job: Job) -> Outcome:
    steps = 0
    async with client.stream("POST", PATH, json=job.body()) as answer:
        if answer.status_code != 200:
            return Outcome(job, answer.status_code, 0, message=(await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "image_generation.completed":
                return Outcome(job, 200, 0, _pixels(event["b64_json"]), event["cache"]["blocks_skipped"] or 0)
            if event["type"] == "error":
                return Outcome(job, 500, 0, message=event["error"]["message"])
            steps += 1
            if job.leaves_after is not None and steps >= job.leaves_after:
                return Outcome(job, 499, 0)
    return Outcome(job, 0, 0, message="the stream ended without a picture")


def _pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))
