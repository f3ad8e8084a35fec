"""`benchmarks/gpu.py` on the CPU: its small models, every row of two of them, and what its numbers are made of."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from dit_cache_backends.strategies.scm import POLICIES, policy_mask

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu
from gpu_measure import Bench, Costs, waits_on_cpu
from gpu_models import CASES, Case, twin
from gpu_report import NOT_REACHED, WHOLE_MODEL, Document, cells
from gpu_rows import OURS, PEER, Row, rows_of

CPU, STEPS = torch.device("cpu"), 8
app = typer.Typer()
app.command()(gpu.main)


def run(*arguments: str) -> tuple[int, str]:
    """What a command line ends with and prints, on both streams."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def measured(path: Path, **given: Any) -> tuple[dict[str, Any], str]:
    """The document and the Markdown of a tiny run."""
    options: dict[str, Any] = {
        "models": "flux",
        "rows": "*",
        "without": "",
        "rounds": 1,
        "minutes": 60.0,
    } | given
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        gpu.main(**options, steps=None, output=path, device="", tiny=True)
    return json.loads(path.read_text()), out.getvalue()


def bench_of(name: str) -> Bench:
    case = CASES[name](CPU, torch.float32, True, None)
    case.prepare()
    return Bench(case, case.build())


def row(name: str) -> Row:
    return next(each for each in rows_of(STEPS) if each.name == name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Every row of two models: one with two lists of blocks in its stack, one whose class names no repeated blocks."""
    return measured(tmp_path_factory.mktemp("gpu") / "whole.json", models="flux,dit")


@pytest.fixture(scope="module")
def rows(whole: tuple[dict[str, Any], str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["model"], each["row"]): each for each in whole[0]["rows"]}


@pytest.fixture(scope="module", autouse=True)
def _nothing_compiled_is_left() -> Iterator[None]:
    yield
    gpu.release()


def test_every_row_is_measured_and_stands_in_the_document_and_in_the_table(
    whole: tuple[dict[str, Any], str], rows: dict[tuple[str, str], dict[str, Any]]
) -> None:
    document, table = whole
    assert list(rows) == [(model, each.name) for model in ("flux", "dit") for each in rows_of(STEPS)]
    assert {key: each["error"] for key, each in rows.items() if each["error"] or not each["seconds"]} == {}
    assert document["device"] == "CPU"
    assert document["tiny"] is True
    assert document["versions"]["torch"] == torch.__version__
    assert {"cuda", "diffusers", "cache-dit", "dit-cache-backends"} <= set(document["versions"])
    assert document["models"]["flux"]["blocks"] == 4
    assert len(document["models"]["dit"]["dense_step"]["blocks"]) == 3
    for model, name in rows:
        assert f"| {name} | {rows[model, name]['seconds']:.3f} |" in table


@pytest.mark.parametrize("model", ["flux", "dit"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["", " + TaylorSeer", ", blocks compiled"])
def test_static_masks_cache_their_steps_and_nothing_else_with_either_library(
    rows: dict[tuple[str, str], dict[str, Any]], model: str, policy: str, kind: str
) -> None:
    mask, depth = policy_mask(policy, STEPS), {"flux": 4, "dit": 3}[model]
    for library in ("", "cache-dit "):
        found = rows[model, f"{library}static {policy}{kind}"]
        assert found["cached_steps"] == [step for step, digit in enumerate(mask) if not digit]
        assert found["blocks_run"] == sum(mask) * depth + (STEPS - sum(mask))
        assert found["blocks_total"] == STEPS * depth
        assert found["waits_most"] == found["waits_per_step"] == 0


def test_the_libraries_end_with_the_same_latents(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    pairs = [
        (key, (key[0], f"cache-dit {key[1]}")) for key in rows if (key[0], f"cache-dit {key[1]}") in rows
    ]
    assert len(pairs) == 2 * 18
    for ours, peer in pairs:
        distance = rows[ours]["distance_from_dense"]
        assert distance > 0
        assert rows[peer]["distance_from_dense"] == pytest.approx(distance, rel=1e-3), ours
        assert rows[peer]["cached_steps"] == rows[ours]["cached_steps"], ours


def test_nothing_is_compiled_behind_the_first_run_and_ours_breaks_no_graph(
    rows: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for (model, name), each in rows.items():
        assert (each["graphs"] is None) == ("compiled" not in name)
        assert each["graphs_later"] in (None, 0), (model, name)
        if each["library"] == OURS:
            assert not each["graph_breaks"], (model, name)
    assert sum(each["graphs"] or 0 for each in rows.values() if each["compiled"] == "whole") > 0
    assert rows["flux", "cache-dit static fast, compiled whole"]["graph_breaks"] > 0


def test_the_dense_row_is_its_own_ideal_and_fewer_steps_are_ideal_by_their_number(
    rows: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for name in ("dense", "dense, blocks compiled", "dense, compiled whole"):
        assert rows["flux", name]["over_ideal"] == 0.0
        assert rows["flux", name]["blocks_run"] == rows["flux", name]["blocks_total"]
    dense = rows["flux", "dense"]["seconds"]
    assert rows["flux", "dense with 4 steps"]["ideal_seconds"] == pytest.approx(dense / 2)


def test_what_a_skipping_run_would_ideally_take_is_the_sum_of_what_ran() -> None:
    costs = Costs(blocks=[1.0, 2.0, 4.0], rest=0.5, outside=0.25)
    assert costs.total([(), (1, 2), ()], steps=3) == 3 * 0.25 + 3 * 0.5 + 7 + 1 + 7


@pytest.mark.parametrize("library", [OURS, PEER])
@pytest.mark.parametrize("model", ["flux", "qwen", "wan"])
def test_the_blocks_that_a_row_tells_are_those_that_were_called(model: str, library: str) -> None:
    bench = bench_of(model)
    outcome = bench.first(Row("static", STEPS, library, "fast"))
    assert outcome.error is None
    driver = bench._drivers["static"]
    called: Counter[int] = Counter()
    for number, block in enumerate(bench.case.blocks(driver.model)):
        block.register_forward_hook(lambda *_, number=number: called.update([number]))
    bench.again(outcome)
    told = Counter(i for each in outcome.skipped for i in range(bench.case.depth) if i not in each)
    assert called == told
    assert called[0] == STEPS * len(bench.case.branches)
    assert called[1] == sum(policy_mask("fast", STEPS)) * len(bench.case.branches)


@pytest.mark.parametrize("model", ["flux", "wan"])
def test_a_difference_is_waited_for_once_in_each_call_that_takes_one(model: str) -> None:
    bench = bench_of(model)
    outcome = bench.first(row("dbcache"))
    summary = bench._drivers["dbcache"].backend.summary()  # type: ignore[attr-defined]
    compared = [len(each.differences) for each in summary.rows]
    assert outcome.waits == compared
    assert max(outcome.waits) == 1
    assert sum(outcome.waits) < len(outcome.waits), "warm-up and the limit are not compared"
    assert sum(bench.first(row("dense")).waits) == sum(bench.first(row("static ultra")).waits) == 0


def test_reading_is_counted_only_within_a_call_and_tensors_are_as_before() -> None:
    own = dict(vars(torch.Tensor))
    counts: list[int] = []
    with waits_on_cpu(counts) as call:
        torch.ones(1).item()
        with call():
            torch.ones(2).tolist()
            bool(torch.ones(1))
        torch.ones(1).item()
        with call():
            pass
    assert counts == [2, 0]
    assert dict(vars(torch.Tensor)) == own


def test_what_fails_is_said_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of("flux")
    bench.case.coefficients = None
    failed = bench.first(row("tea_cache"))
    assert failed.error is not None
    assert failed.error.startswith("ConfigError: no published set")
    bench.again(failed)
    assert (failed.seconds, failed.median) == ([], None)
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    assert bench.first(row("cache-dit static fast")).error == "cache-dit is not installed"
    assert bench.first(row("static fast")).error is None
    with torch.no_grad():
        bench.model.proj_out.weight.fill_(float("nan"))
    assert bench.first(row("static fast")).error == "ArithmeticError: the latents are not finite"


def test_a_twin_has_the_same_weights_and_nothing_else_in_common() -> None:
    model: Any = CASES["flux"](CPU, torch.float32, True, None).build()
    other = twin(model)
    assert [id(p) for p in other.parameters()] == [id(p) for p in model.parameters()]
    assert not {id(m) for m in other.modules()} & {id(m) for m in model.modules()}


def test_a_model_is_gone_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights: list[weakref.ref[Any]] = []
    left: list[int] = []
    build = Case.build

    def watched(case: Case, seed: int = 0) -> Any:
        left.append(sum(weight() is not None for weight in weights))
        model = build(case, seed)
        weights.extend(weakref.ref(weight) for weight in model.parameters())
        return model

    monkeypatch.setattr(Case, "build", watched)
    document, _ = measured(
        tmp_path / "a.json", models="qwen,wan", rows="static fast;cache-dit static fast;dbcache"
    )
    assert [each["error"] for each in document["rows"]] == [None] * 8
    gc.collect()
    assert left == [0, 0]
    assert not any(weight() is not None for weight in weights)


@pytest.mark.parametrize(
    ("name", "billions", "blocks", "branches", "steps"),
    [
        ("flux", 11.9, 57, 1, 28),
        ("qwen", 20.4, 60, 2, 50),
        ("wan", 1.42, 30, 2, 50),
        ("dit", 0.75, 28, 1, 50),
    ],
)
def test_the_real_models_have_their_published_sizes(
    name: str, billions: float, blocks: int, branches: int, steps: int
) -> None:
    case = CASES[name](CPU, torch.bfloat16, False, None)
    assert case.parameters / 1e9 == pytest.approx(billions, rel=0.005)
    assert (case.depth, len(case.branches), case.run_steps) == (blocks, branches, steps)


def test_without_a_gpu_and_without_tiny_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, told = run()
    assert code == 2
    assert "sees no CUDA device" in told
    assert "--tiny" in told
    assert run("--device", "cpu")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--models", "fluks"], "Did you mean"),
        (["--rows", "static fats"], "Did you mean"),
        (["--without", "nothing*"], "No row is called 'nothing*'"),
        (["--steps", "7"], "no step masks for 7 steps"),
        (["--device", "meta"], "expected cuda"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(Case, "build", lambda *_: pytest.fail("a model was made"))
    code, output = run("--tiny", *arguments)
    assert code == 2
    assert told in output


def test_runs_add_to_one_file_and_only_where_they_belong_together(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    measured(path, rows="static fast")
    document, table = measured(path, rows="static ultra*", without="*compiled*;*TaylorSeer")
    assert [each["row"] for each in document["rows"]] == ["dense", "static fast", "static ultra"]
    assert "| static fast |" in table
    before = path.read_text()
    assert run("--tiny", "--models", "flux", "--steps", "12", "--json", str(path))[0] == 2
    path.write_text(json.dumps(json.loads(before) | {"device": "another"}))
    code, told = run("--tiny", "--models", "flux", "--json", str(path))
    assert code == 2
    assert "another" in told
    assert "cannot stand in one table" in told


def test_a_model_that_cannot_be_made_is_one_row_and_the_next_one_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError("needs about 51 GB of GPU memory; 20 GB are free")

    monkeypatch.setattr(CASES["qwen"], "build", too_large)
    path = tmp_path / "gpu.json"
    code, told = run("--tiny", "--models", "qwen,dit", "--rows", "dense", "--json", str(path))
    rows = {each["model"]: each for each in json.loads(path.read_text())["rows"]}
    assert (code, rows["qwen"]["row"], rows["qwen"]["seconds"]) == (1, WHOLE_MODEL, None)
    assert rows["qwen"]["error"] == "MemoryError: needs about 51 GB of GPU memory; 20 GB are free"
    assert rows["dit"]["error"] is None
    assert "Not even the dense rows could be measured of: Qwen-Image" in told


def test_rows_that_were_not_reached_say_so_and_leave_earlier_ones_alone(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    code, told = run(
        "--tiny", "--models", "dit", "--rows", "static fast", "--minutes", "0", "--json", str(path)
    )
    assert code == 1
    assert "Not even the dense rows could be measured of: DiT" in told
    assert [each["error"] for each in json.loads(path.read_text())["rows"]] == [NOT_REACHED] * 2
    there = {"model": "dit", "row": "dense", "seconds": 1.0, "error": None}
    document = Document(None, "CPU", True)
    document.put("dit", {}, [there, {"row": WHOLE_MODEL, "error": "no memory"}])
    document.put("dit", {}, [{"row": "dense", "seconds": None, "error": NOT_REACHED}])
    assert document.rows("dit") == [there]
    assert cells({"row": WHOLE_MODEL, "error": "no memory"})[:2] == [WHOLE_MODEL, "no memory"]
