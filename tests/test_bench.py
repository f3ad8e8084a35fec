"""`dit-cache bench`: what it counts is right, what it writes is complete, and a model is left as it was."""

from __future__ import annotations

import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dit_cache_backends import ConfigError
from dit_cache_backends.bench import gpu, peers
from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import CacheDiT, FirstBlock, Ours, Plain
from dit_cache_backends.bench.rounds import Times, measure
from dit_cache_backends.bench.run import SECTIONS, main
from dit_cache_backends.bench.shapes import PYTHON, make_ideal, make_inputs, make_model, small
from dit_cache_backends.bench.steps import ALWAYS, KINDS
from dit_cache_backends.cli import app

pytestmark = pytest.mark.filterwarnings("ignore")  # of cache-dit and of what it imports


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One quick run of everything, and the report that it wrote."""
    report = tmp_path_factory.mktemp("bench") / "benchmarks.md"
    return main(Asked(quick=True), output=report), report


def rows(quick: tuple[dict[str, Any], Path], section: str, who: str | None = None) -> list[dict[str, Any]]:
    found = quick[0]["sections"][section]["rows"]
    return [row for row in found if who in (None, row["who"])]


def test_a_quick_run_writes_the_report_the_data_and_the_plots(quick: tuple[dict[str, Any], Path]) -> None:
    data, report = quick
    text = report.read_text(encoding="utf-8")
    assert json.loads(report.with_suffix(".json").read_text(encoding="utf-8")) == json.loads(json.dumps(data))
    assert list(data["sections"]) == list(SECTIONS)
    for name in ("tokens", "batch", "blocks", "requests", "pictures"):
        picture = report.with_name(f"benchmarks_{name}.png")
        assert f"({picture.name})" in text
        with Image.open(picture) as opened:
            assert opened.width > 800
    for title in ("The targets", "What a step costs", "Waits for the device", "On a GPU"):
        assert f"## {title}" in text
    assert "quick run on small models" in text
    for target in data["targets"]:
        assert f"| {target['what']} |" in text
    assert not any(line.startswith("|") and line.count("|") < 3 for line in text.splitlines())


def test_the_names_in_the_data_are_those_of_its_schema(quick: tuple[dict[str, Any], Path]) -> None:
    data, _ = quick
    assert set(data) == {"schema", "machine", "seconds", "targets", "sections"}
    assert data["schema"] == 1
    assert set(data["machine"]) == {"machine", "system", "python", "threads", "quick", "versions"}
    assert set(data["machine"]["versions"]) == {"torch", "diffusers", "dit-cache-backends", "cache-dit"}
    for target in data["targets"]:
        assert set(target) == {"what", "reach", "cache-dit before", "found", "met"}
    steps = data["sections"]["steps"]["shapes"]
    assert set(steps) == {"flux-512", "python-bound", "demo-like"}
    for row in (row for shape in steps.values() for row in shape["rows"]):
        assert {"kind", "who", "blocks_run", "steps", "median_ms", "minimum_ms", "base", "ratio"} <= set(row)
        assert {"ratio_low", "ratio_high", "ratio_of_minima", "over_us", "elsewhere"} <= set(row)
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, (int, float)))
        assert 0 < row["minimum_ms"] <= row["median_ms"]


def test_every_contender_runs_the_blocks_that_its_kind_of_step_means(
    quick: tuple[dict[str, Any], Path],
) -> None:
    shapes = quick[0]["sections"]["steps"]["shapes"]
    for shape in shapes.values():
        everything = ("dense", "computed", "never skipping", "dbprune, nothing pruned")
        for row in shape["rows"]:
            assert row["blocks_run"] == (shape["blocks"] if row["kind"] in everything else 1), row
        whose = {row["who"] for row in shape["rows"]}
        assert whose == {"plain", "ours", "cache-dit", "FirstBlockCache"}


def test_a_host_waits_never_with_a_mask_once_with_a_difference_and_once_more_than_blocks_with_dbprune(
    quick: tuple[dict[str, Any], Path],
) -> None:
    blocks = quick[0]["sections"]["waits"]["blocks"]
    ours = {row["kind"]: row["per_step"] for row in rows(quick, "waits", "ours")}
    theirs = {row["kind"]: row["per_step"] for row in rows(quick, "waits", "cache-dit")}
    assert [row["per_step"] for row in rows(quick, "waits", "plain")] == [0]
    assert ours["static mask, cached"] == theirs["static mask, cached"] == 0
    assert ours["dynamic, computed"] == ours["dynamic, cached"] == theirs["dynamic, cached"] == 1
    assert ours["dbprune, all but one pruned"] <= 2
    assert ours["dbprune, nothing pruned"] <= blocks + 1
    assert theirs["dbprune, all but one pruned"] == theirs["dbprune, nothing pruned"] == blocks - 1


def test_a_branch_holds_one_term_more_than_the_order_and_nothing_behind_the_run(
    quick: tuple[dict[str, Any], Path],
) -> None:
    for row in rows(quick, "held", "ours"):
        order = 0 if row["kind"] == "reuse" else int(row["kind"].split()[-1])
        assert row["image_streams"] == 1 + order + 1, row
        assert row["text_streams"] == (order + 1 if row["model"] == "flux" else 0), row
        assert row["bytes_after"] == 0, row
    assert all(row["bytes_after"] for row in rows(quick, "held", "cache-dit"))


def test_requests_that_take_turns_each_give_what_they_give_alone_and_hold_the_same(
    quick: tuple[dict[str, Any], Path],
) -> None:
    ours = rows(quick, "requests", "ours")
    assert [row["requests"] for row in ours] == [1, 2, 4]
    assert all(row["right"] == row["requests"] for row in ours)
    assert {row["held"] / row["requests"] for row in ours} == {ours[0]["held"]}
    assert not any(row["held_after"] for row in ours)


def test_a_narrower_type_holds_less(quick: tuple[dict[str, Any], Path]) -> None:
    found = quick[0]["sections"]["storage"]["rows"]
    held = {(row["strategy"], row["kept"]): row["held"] for row in found}
    for strategy in {row["strategy"] for row in found}:
        plain = held[strategy, "as it is"]
        assert held[strategy, "cache_dtype: bfloat16"] == plain / 2
        assert plain / 4 <= held[strategy, "cache_dtype: float8_e4m3fn"] < plain / 3.9


@pytest.mark.parametrize("library", ["cache-dit", "FirstBlockCache"])
def test_the_same_options_skip_the_same_blocks_in_another_library(
    quick: tuple[dict[str, Any], Path], library: str
) -> None:
    theirs = {row["setting"]: row for row in rows(quick, "pictures", library)}
    ours = {row["setting"]: row for row in rows(quick, "pictures", "ours")}
    assert theirs
    for setting, row in theirs.items():
        assert row["blocks_run"] == ours[setting]["blocks_run"] < row["blocks"]
        assert row["psnr_mean"] == pytest.approx(ours[setting]["psnr_mean"], abs=0.5)


def test_a_compiled_model_is_one_graph_for_each_kind_of_step(quick: tuple[dict[str, Any], Path]) -> None:
    for row in rows(quick, "compiled", "ours"):
        assert row.get("breaks") == 0, row
        assert row["recompilations"] == 0, row


def test_a_quick_run_judges_counts_and_no_times(quick: tuple[dict[str, Any], Path]) -> None:
    judged = {target["what"]: target["met"] for target in quick[0]["targets"]}
    assert judged["bytes held after a run"] is True
    assert judged["flux-512: computed / dense"] is None


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(distribution: str) -> str:
        if distribution == "cache-dit":
            raise PackageNotFoundError(distribution)
        return version(distribution)

    monkeypatch.setattr(peers, "version", absent)
    report = tmp_path / "benchmarks.md"
    arguments = ["bench", "--quick", "--sections", "waits", "--output", str(report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = report.read_text(encoding="utf-8")
    assert "cache-dit is not installed here" in text
    assert "| cache-dit (not installed) |" in text
    data = json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))
    assert "cache-dit" not in {row["who"] for row in data["sections"]["waits"]["rows"]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--sections", "wait"], "Did you mean 'waits'"), (["--shape", "flux512"], "Did you mean 'flux-512'")],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest_one(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_who_has_been_on_the_model_leaves_it_as_it_was() -> None:
    shape = small(PYTHON)
    model, inputs = make_model(shape), make_inputs(shape)
    backend, options = KINDS["cached"]
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        plain = model(**inputs[0])[0]
        takers = [
            CacheDiT("cached", model, inputs, backend, options),
            FirstBlock("cached", model, inputs, ALWAYS),
            Ours("cached", model, inputs, backend, options),
        ]
        for taker in takers * 2:
            taker.enter()
            taker.step()
            taker.step()
            taker.leave()
            assert torch.equal(model(**inputs[0])[0], plain)
            assert list(dict(model.named_modules())) == list(attributes)
            assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
            assert [type(module) for module in model.modules()] == classes


def test_the_ideal_step_is_the_first_block_between_the_models_own_ends() -> None:
    shape = small(PYTHON)
    model, inputs = make_model(shape), make_inputs(shape)
    ideal = make_ideal(model, shape)
    assert ideal.transformer_blocks[0] is model.transformer_blocks[0]
    for block in [*model.transformer_blocks[1:], *model.single_transformer_blocks]:
        block.forward = lambda hidden_states, encoder_hidden_states, **_: (
            encoder_hidden_states,
            hidden_states,
        )
    with torch.no_grad():
        assert torch.equal(model(**inputs[0])[0], ideal(**inputs[0])[0])


class Noted(Plain):
    """Notes its turns, and fails at a step where it is told to."""

    def __init__(self, kind: str, turns: list[str], fails: bool = False) -> None:
        super().__init__(kind, torch.nn.Identity(), ())
        self.turns, self.fails = turns, fails

    def enter(self) -> None:
        self.turns.append(f"{self.kind} in")

    def leave(self) -> None:
        self.turns.append(f"{self.kind} out")

    def step(self) -> None:
        if self.fails:
            raise RuntimeError(self.kind)


def test_every_other_round_goes_the_other_way_round() -> None:
    turns: list[str] = []
    times = measure([Noted(name, turns) for name in "abc"], rounds=2, turn=0.0)
    inside = [turn[0] for turn in turns if turn.endswith("in")]
    assert inside[-6:] == ["a", "b", "c", "c", "b", "a"]
    assert {key: len(each.rounds) for key, each in times.items()} == {(name, "plain"): 2 for name in "abc"}


def test_who_fails_is_taken_off_the_model() -> None:
    turns: list[str] = []
    with pytest.raises(RuntimeError, match="b"):
        measure([Noted("a", turns), Noted("b", turns, fails=True)], rounds=1)
    assert turns.count("b in") == turns.count("b out") == 1


def test_a_ratio_is_that_of_steps_in_the_same_round() -> None:
    # The machine was three times slower in the second round.
    base = Times([[1.0, 1.0, 9.0], [3.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    own = Times([[2.0, 2.0, 2.0], [6.0, 6.0, 6.0], [2.2, 2.2, 2.2]])
    assert own.ratio(base) == 2.0
    assert own.over(base) == pytest.approx(1.2)
    assert own.minimum / base.minimum == 2.0
    assert own.spread(base) == pytest.approx((2.0, 2.1))


def test_the_table_of_a_gpu_is_taken_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu_benchmarks.json"
    assert "It has not run on a GPU" in " ".join(str(gpu.report(path)[0].body[0]).split())
    row = {
        "model": "flux",
        "row": "dense",
        "seconds": 4.0,
        "error": None,
        "blocks_run": 57,
        "blocks_total": 57,
    }
    told = {
        "title": "FLUX",
        "transformer": "Flux",
        "parameters": 12e9,
        "dtype": "bfloat16",
        "blocks": 57,
        "steps": 28,
    }
    data = {
        "device": "a GPU",
        "tiny": False,
        "versions": {"torch": "2"},
        "models": {"flux": told},
        "rows": [row],
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    head, table = gpu.report(path)
    assert "a GPU" in str(head.body[0])
    assert table.title == "FLUX"
    assert table.body[1].rows[0][:4] == ["dense", "4.000", "", "57/57"]  # type: ignore[union-attr]
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="run it anew or remove"):
        gpu.report(path)
