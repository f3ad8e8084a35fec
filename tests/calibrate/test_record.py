"""What a record holds: numbers as hooks on the plain model give them, whenever and wherever they were taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import ConfigError
from dit_cache_backends.calibrate import Record, merge_records, read_record, record
from dit_cache_backends.models import card_for
from dit_cache_backends.trials import Prompt, Trial
from dit_cache_conformance.counting import block_lists
from dit_cache_conformance.tiny import Tiny, build, build_transformer

from ..engine.runs import inputs, run_plain
from ..strategies.tea_cache_reference import signals_of
from .runs import prompts_of, record_of, recorded, series_of

Seen = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _no_gradients(as_in_a_run: None) -> None:
    """As in a run."""


def watched(tiny: Tiny, steps: int, seed: int) -> dict[str, list[Seen]]:
    """The tokens and latents of each call of each transformer in a plain run, by `transformer:branch`."""
    found: dict[str, list[Seen]] = {}
    hooks = []

    def stream(out: Any, like: Tensor) -> Tensor:
        outs = [out] if isinstance(out, Tensor) else [each for each in out if each is not None]
        return next(each for each in outs if each.shape == like.shape)

    for name, model in tiny.transformers.items():
        (first, *others) = next(iter(block_lists(model).values()))
        last = others[-1]
        entry: list[Tensor] = []
        calls = [0]

        def called(_: nn.Module, args: Any, kwargs: Any, name: str = name, calls: Any = calls) -> None:
            branch = tiny.spec.branches[calls[0] % len(tiny.spec.branches)]
            calls[0] += 1
            latents = kwargs.get("hidden_states", args[0] if args else None)
            found.setdefault(f"{name}:{branch}", []).append({"latent": latents.double().numpy()})
            found["now"] = found[f"{name}:{branch}"]

        def into(_: nn.Module, args: Any, kwargs: Any, entry: Any = entry) -> None:
            tokens = kwargs.get("hidden_states", args[0] if args else None)
            entry[:] = [tokens.clone()]
            found["now"][-1]["input"] = tokens.double().numpy().copy()

        def after(key: str, entry: Any = entry) -> Any:
            def note(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                tokens = stream(out, entry[0])
                found["now"][-1][key] = tokens.double().numpy().copy()

            return note

        hooks += [
            model.register_forward_pre_hook(called, with_kwargs=True),
            first.register_forward_pre_hook(into, with_kwargs=True),
            first.register_forward_hook(after("behind the first"), with_kwargs=True),
            last.register_forward_hook(after("exit"), with_kwargs=True),
        ]
    tiny.run(steps, seed=seed)
    for hook in hooks:
        hook.remove()
    del found["now"]
    return found


def change(before: np.ndarray, now: np.ndarray) -> float:
    return float(np.abs(now - before).mean() / np.abs(before).mean())


def close(found: Sequence[float | None], expected: Sequence[float | None]) -> bool:
    """Equal but for what float32 rounds; nothing where nothing is expected."""
    one, other = (np.array(each, dtype=np.float64) for each in (found, expected))
    return one.shape == other.shape and np.allclose(one, other, rtol=2e-4, atol=2e-6, equal_nan=True)


def by_hand(calls: list[Seen]) -> dict[str, list[float | None]]:
    """The columns of a series, by their definitions."""
    for call in calls:
        call["residual"] = call["exit"] - call["input"]
        call["first"] = call["behind the first"] - call["input"]
    columns: dict[str, list[float | None]] = {
        name: [None, *(change(one[name], other[name]) for one, other in pairwise(calls))]
        for name in ("latent", "input", "exit", "first", "residual")
    }
    columns["output"] = columns["exit"]
    for name in ("input", "exit"):
        columns[f"{name}_size"] = [float(np.abs(call[name]).mean()) for call in calls]
    lengths = [np.linalg.norm(call["residual"], axis=-1) for call in calls]
    columns["norm"] = [float(each.mean()) for each in lengths]
    ratios = [now / before for before, now in pairwise(lengths)]
    columns["ratio"] = [None, *(float(each.mean()) for each in ratios)]
    columns["ratio_std"] = [None, *(float(each.std()) for each in ratios)]
    cosines = [
        (one["residual"] * other["residual"]).sum(-1) / (a * b)
        for (one, other), (a, b) in zip(pairwise(calls), pairwise(lengths), strict=True)
    ]
    columns["cosine"] = [None, *(float((1 - each).mean()) for each in cosines)]
    return columns


@pytest.mark.parametrize("name", ["qwen_image", "wan22", "sd3"])
def test_the_numbers_are_those_that_hooks_on_the_blocks_give(name: str) -> None:
    found = record_of(name, count=2, steps=6)
    for seed in range(2):
        expected = watched(build(name), 6, seed)
        assert set(found.runs[seed]) == set(expected)
        first = 0
        for key, calls in expected.items():
            series = found.runs[seed][key]
            columns = by_hand(calls)
            for column, numbers in columns.items():
                assert close(series.columns[column], numbers), (key, column)
            for column in ("input", "first", "exit"):
                for now, row in enumerate(series.pairs[column]):
                    moved = [change(calls[before][column], calls[now][column]) for before in range(now)]
                    assert close(row, moved)
            if key.endswith(":uncond"):
                first += len(calls)
                assert series.steps[-1] == first - 1
        assert sum(len(each) for each in found.runs[seed].values()) == 6 * len(build(name).spec.branches)


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image"])
def test_the_signal_is_the_one_that_the_model_itself_makes(name: str) -> None:
    series = series_of(build_transformer(name), name, 8)
    signals = [each.double().numpy() for each in signals_of(build_transformer(name), inputs(name, 8))]
    expected = [None, *(change(one, other) for one, other in pairwise(signals))]
    assert close(series.columns["signal"], expected)


def test_of_several_stacks_the_output_is_that_of_the_last_one() -> None:
    model = build_transformer("hunyuan_video")
    stacks = card_for(model).stacks
    first, last = (model.get_submodule(each.lists[-1].path)[-1] for each in (stacks[0], stacks[-1]))
    assert first is not last
    seen: dict[str, list[np.ndarray]] = {"exit": [], "output": []}
    hooks = [
        block.register_forward_hook(
            lambda _, args, out, n=name: seen[n].append(out[0].double().numpy().copy())
        )
        for name, block in (("exit", first), ("output", last))
    ]
    run_plain(model, inputs("hunyuan_video", 6))
    for hook in hooks:
        hook.remove()
    series = series_of(build_transformer("hunyuan_video"), "hunyuan_video", 6)
    for name, tokens in seen.items():
        assert close(series.columns[name], [None, *(change(one, other) for one, other in pairwise(tokens))])
    assert series.columns["exit"] != series.columns["output"]


def test_timesteps_and_sigmas_are_those_of_the_scheduler() -> None:
    tiny = build("flux")
    series = recorded(tiny, count=1, steps=5).series("transformer:cond")[0]
    tiny.pipe.scheduler.set_timesteps(5)
    tiny.run(5)
    assert series.columns["timestep"] == pytest.approx(tiny.pipe.scheduler.timesteps.tolist())
    assert series.columns["sigma"] == pytest.approx(tiny.pipe.scheduler.sigmas[:-1].tolist())


def test_so_many_first_blocks_are_measured_as_were_asked_for() -> None:
    one, two = (series_of(build_transformer("wan"), "wan", 5, first) for first in (1, 2))
    assert one.columns["exit"] == two.columns["exit"]
    assert one.columns["first"] != two.columns["first"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of five prompts that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole") / "whole.jsonl"
    with torch.no_grad(), Trial(build("flux").pipe) as trial:
        record(trial, prompts_of("flux", 5), path, steps=4)
    return path


@pytest.mark.parametrize("lines", [0, 1, 3.4, 5.999])
def test_a_record_that_was_cut_off_goes_on_and_is_the_whole_to_the_bit(
    lines: float, whole: Path, tmp_path: Path
) -> None:
    content = whole.read_bytes()
    ends = [0, *(at + 1 for at, byte in enumerate(content) if byte == 10)]
    cut = int(ends[int(lines)] + (lines % 1) * (ends[min(int(lines) + 1, len(ends) - 1)] - ends[int(lines)]))
    path = tmp_path / "cut.jsonl"
    path.write_bytes(content[:cut])
    with Trial(build("flux").pipe) as trial:
        record(trial, prompts_of("flux", 5), path, steps=4)
    assert path.read_bytes() == content


def test_what_was_recorded_before_an_interruption_stays_and_is_not_drawn_again(
    whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "stopped.jsonl"
    drawn: list[int] = []

    def told(done: int, of: int) -> None:
        drawn.append(done)
        assert of == 5
        if done == 2 and len(drawn) == 3:
            raise KeyboardInterrupt

    with Trial(build("flux").pipe) as trial:
        with pytest.raises(KeyboardInterrupt):
            record(trial, prompts_of("flux", 5), path, steps=4, told=told)
        assert read_record(path).missing == [2, 3, 4]
        record(trial, prompts_of("flux", 5), path, steps=4, told=told)
    assert path.read_bytes() == whole.read_bytes()


KILLED = """
import os, signal, sys, torch
from dit_cache_backends.calibrate import record
from dit_cache_backends.trials import Trial
from dit_cache_conformance.tiny import build
from tests.calibrate.runs import prompts_of

def told(done, of):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
with torch.no_grad(), Trial(build("flux").pipe) as trial:
    record(trial, prompts_of("flux", 5), sys.argv[1], steps=4, told=told)
"""


def test_a_process_that_is_killed_leaves_what_it_has_measured(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.jsonl"
    code = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    ).returncode
    assert code == -signal.SIGKILL
    assert sorted(read_record(path).runs) == [0, 1, 2]
    with Trial(build("flux").pipe) as trial:
        record(trial, prompts_of("flux", 5), path, steps=4)
    assert path.read_bytes() == whole.read_bytes()


def test_shards_that_are_merged_are_the_whole_to_the_bit(whole: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{part}.jsonl" for part in (1, 2, 3)]
    with Trial(build("flux").pipe) as trial:
        for part, path in enumerate(paths, 1):
            record(trial, prompts_of("flux", 5), path, steps=4, shard=(part, 3))
    assert sorted(read_record(paths[1]).runs) == [1, 4]
    merged = merge_records(reversed_twice(paths))
    assert not merged.missing
    merged.write(tmp_path / "merged.jsonl")
    assert (tmp_path / "merged.jsonl").read_bytes() == whole.read_bytes()


def reversed_twice(paths: list[Path]) -> list[Path]:
    """In another order, and one of them twice: the same numbers do not contradict each other."""
    return [*reversed(paths), paths[0]]


def test_records_of_different_runs_are_not_merged_nor_gone_on_with(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with Trial(build("flux").pipe) as trial:
        record(trial, prompts_of("flux", 5), other, steps=3, shard=(1, 5))
        before = other.read_bytes()
        with pytest.raises(ConfigError, match=r"different runs.*steps: .*3"):
            merge_records([whole, other])
        with pytest.raises(ConfigError, match=r"another run.*steps: 3 there, 4 here"):
            record(trial, prompts_of("flux", 5), other, steps=4)
        with pytest.raises(ConfigError, match="prompts"):
            record(trial, prompts_of("flux", 4), other, steps=3)
    assert other.read_bytes() == before


def test_two_records_that_measured_a_prompt_differently_are_refused(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    changed = read_record(whole)
    changed.runs[3]["transformer:cond"].columns["input"][2] = 0.5
    changed.write(other)
    with pytest.raises(ConfigError, match=r"prompt 4 is in another record as well, with other numbers"):
        merge_records([whole, other])


def test_texts_are_not_written_down_where_that_is_not_wanted(tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    with Trial(build("flux").pipe) as trial:
        found = record(trial, prompts_of("flux", 2), path, steps=3, texts=False)
    assert b"thing number" not in path.read_bytes()
    assert (found.origin.prompts, found.origin.seeds, found.origin.texts) == (2, (0, 1), None)
    assert found.origin.prompts_hash == record_of("flux", 2, 3).origin.prompts_hash


def test_a_model_that_gives_no_finite_numbers_is_told_of_and_nothing_wrong_is_kept(tmp_path: Path) -> None:
    tiny, path = build("flux"), tmp_path / "broken.jsonl"
    with Trial(tiny.pipe) as trial:
        record(trial, prompts_of("flux", 2), path, steps=3, shard=(1, 2))
        before = path.read_bytes()
        hook = next(iter(block_lists(tiny.pipe.transformer).values()))[0].register_forward_hook(
            lambda module, args, out: tuple(each * float("inf") for each in out)
        )
        with pytest.raises(ConfigError, match=r"prompt 2 \('thing number 1'\).*not finite"):
            record(trial, prompts_of("flux", 2), path, steps=3)
        hook.remove()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "does not begin as one|no JSON"),
        ("not json\n", "line 1: this is no JSON"),
        ('{"calibration": 1}\n', "no record of `dit-cache calibrate`"),
        ('{"record": 7}\n', r"version 7; this release reads version 1"),
        ('{"record": 1, "measured": {}}\n', "provenance cannot be read"),
    ],
)
def test_what_is_no_record_is_refused_by_its_line(content: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=text):
        read_record(path)


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_lost(whole: Path, tmp_path: Path) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:50] + b"\n"
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=r"broken\.jsonl, line 3"), Trial(build("flux").pipe) as trial:
        record(trial, prompts_of("flux", 5), path, steps=4)
    assert path.read_bytes() == b"".join(lines)


def test_without_prompts_or_a_shard_that_there_is_nothing_is_drawn() -> None:
    with Trial(build("flux").pipe) as trial:
        for prompts, shard, text in (([], (1, 1), "no prompts"), ([Prompt("a", 0)], (3, 2), "3/2")):
            with pytest.raises(ConfigError, match=text):
                record(trial, prompts, steps=3, shard=shard)


def test_recording_leaves_the_model_as_it_was_and_holds_no_tensor() -> None:
    tiny = build("wan22")
    before = tiny.run(4)
    found = recorded(tiny, count=1, steps=4)
    assert torch.equal(tiny.run(4), before)
    plain = json.loads(json.dumps(found.origin.to_dict()))
    assert set(plain["blocks"]) == {"transformer", "transformer_2"}
    assert not [each for each in values(found) if isinstance(each, Tensor)]


def values(found: Record) -> Iterator[object]:
    for run in found.runs.values():
        for series in run.values():
            for column in series.columns.values():
                yield from column
