"""Two processes of one request, as torchrun starts them: the picture and the decisions of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from dit_cache_backends.hosts.engine import Engine
from dit_cache_conformance.tiny import build

from .engine_runs import hand_in
from .ranks_program import CASES, MODELS, outcome

NEAR = 1e-5
"""How far a picture may be off that of one process: float32 sums in another order."""

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two processes found; they are started once, also where pytest itself runs in several."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            started(folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def started(folder: Path) -> None:
    """Run the program, which leaves a file of each process in ``folder``."""
    folder.mkdir()
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "tests.hosts.ranks_program", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told, _ = run.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        pytest.fail("the two processes wait for each other")
    finally:
        if run.poll() is None:
            run.terminate()  # torchrun then ends what it started
            run.communicate()
    assert run.returncode == 0, told[-4000:]


@pytest.fixture(scope="module")
def one() -> dict[str, list[dict[str, Any]]]:
    """What one process finds."""
    found = {}
    for name in MODELS:
        with Engine(build(name).pipe) as engine:
            found[name] = [outcome(hand_in(engine, name, case)) for case in CASES]
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_draw_the_picture_of_one(
    name: str, number: int, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one[name][number]["latents"]
    for found in two:
        off = (found[name][number]["latents"] - expected).abs().max()
        assert off <= NEAR * expected.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_both_skip_what_one_process_skips(name: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for number, case in enumerate(CASES):
        expected = one[name][number]["skipped"]
        assert [found[name][number]["skipped"] for found in two] == [expected, expected]
        if case.backend == "dbprune":
            # Behind the warm-up not always the same: the decisions were really measured.
            assert len(set(expected[2:])) > 1


def test_a_request_that_one_process_cancels_ends_in_both_and_the_next_one_runs(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["flux"][0]["latents"]
    for found in two:
        stopped = found["stopped by one"]
        assert stopped["state"] == "cancelled"
        assert (stopped["after"] - expected).abs().max() <= NEAR * expected.abs().max()


def test_processes_that_do_not_add_up_and_turns_among_them_are_refused(two: list[dict[str, Any]]) -> None:
    for found in two:
        too_few, concurrent = found["refused"]
        assert "3 processes, but 2 are running" in too_few
        assert "max_concurrent is 2" in concurrent
