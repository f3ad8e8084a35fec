"""`tea_cache` on real tiny pipelines: the steps of the rules, branches, experts, runs known beforehand, calibrators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_cache_backends import enable_cache
from dit_cache_backends.models import card_for
from dit_cache_backends.models.signals import TimeSignal
from dit_cache_conformance.tiny import Tiny, build, build_transformer
from dit_cache_conformance.tiny.configs import flux

from ..engine.counting import executed
from ..engine.runs import inputs, kinds, relative, run_told, same
from ..engine.strategies import never
from ..engine.toys import Toy, adds, image
from .tea_cache_reference import RULES, differences, mixing, signals_of
from .test_tea_cache_rule import READ, drifting

STEPS = 10
COEFFICIENTS = [0.7, 1.3, 0.002]
NAMES = ("flux", "qwen_image", "sd3", "wan", "wan22", "cogvideox", "hunyuan_video", "dit", "pixart")
TIMED = ("wan", "wan22", "cogvideox")
Calls = dict[str, dict[int, list[dict[str, Any]]]]


@contextmanager
def recorded(tiny: Tiny) -> Iterator[Calls]:
    """The arguments of every call of each transformer, by the number of the call in its step."""
    calls: Calls = {}
    hooks = []
    for name, model in tiny.transformers.items():
        calls[name] = {number: [] for number in range(len(tiny.spec.branches))}

        def note(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            next_in_step = min(calls[name].values(), key=len)
            given = dict(zip(("hidden_states",), args, strict=False)) | kwargs
            next_in_step.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()})

        hooks.append(model.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def threshold_for(name: str, coefficients: list[float]) -> float:
    """A threshold at which the pipeline skips some of its steps and not all."""
    tiny = build(name)
    with recorded(tiny) as calls:
        tiny.run(STEPS)
    first, *_ = tiny.transformers
    return mixing(differences(signals_of(build(name).transformers[first], calls[first][0])), coefficients)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_skips_the_steps_that_the_formulas_give(name: str) -> None:
    tiny = build(name)
    rule = "official" if name in ("wan", "sd3") else "vllm_omni"
    threshold = threshold_for(name, COEFFICIENTS)
    backend: Any = enable_cache(
        tiny.pipe, "tea_cache", rule=rule, coefficients=COEFFICIENTS, rel_l1_thresh=threshold
    )
    with recorded(tiny) as calls, executed(*tiny.transformers.values()) as ran:
        tiny.run(STEPS)
    summary = backend.summary()
    assert summary.blocks_run == len(ran)
    plain = build(name).transformers
    skipped = 0
    for transformer, branches in calls.items():
        for branch, run in zip(tiny.spec.branches, branches.values(), strict=True):
            moves = differences(signals_of(plain[transformer], run))
            expected = RULES[rule](moves, COEFFICIENTS, threshold)
            first = min(row.step for row in summary.rows if row.transformer == transformer)
            for stack in tiny.spec.stacks:
                cached = summary.cached_steps(transformer, branch, stack)
                assert cached == [first + step for step in expected], (transformer, branch)
            skipped += len(expected)
    assert skipped


@pytest.mark.parametrize("name", ["flux", "wan22", "hunyuan_video"])
def test_threshold_0_gives_the_plain_picture_bit_for_bit(name: str) -> None:
    tiny = build(name)
    plain = tiny.run(5)
    backend: Any = enable_cache(tiny.pipe, "tea_cache", coefficients="identity", rel_l1_thresh=0.0)
    assert torch.equal(tiny.run(5), plain)
    assert backend.summary().blocks_skipped == 0
    backend.disable()
    assert torch.equal(tiny.run(5), plain)


class Waits(TorchFunctionMode):
    """Counts what would wait for an accelerator."""

    NAMES = ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy", "__index__")
    READ = tuple(getattr(torch.Tensor, name) for name in NAMES)

    def __init__(self) -> None:
        super().__init__()
        self.by_step: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.READ and self.by_step:
            self.by_step[-1] += 1
        return func(*args, **(kwargs or {}))


def waits(tiny: Tiny) -> list[int]:
    """Waits between the start of one call of a transformer and that of the next."""
    with Waits() as mode:

        def note(*_: Any) -> None:
            mode.by_step.append(0)

        hooks = [model.register_forward_pre_hook(note) for model in tiny.transformers.values()]
        tiny.run(STEPS)
        for hook in hooks:
            hook.remove()
    return mode.by_step


@pytest.mark.parametrize("name", TIMED)
def test_where_the_time_decides_the_whole_run_is_known_at_its_start_and_no_step_waits(name: str) -> None:
    threshold = threshold_for(name, COEFFICIENTS)
    tiny = build(name)
    engine = never("whole")
    engine.enable(tiny.pipe)
    plain = waits(tiny)
    engine.disable()
    backend: Any = enable_cache(tiny.pipe, "tea_cache", coefficients=COEFFICIENTS, rel_l1_thresh=threshold)
    extra = [now - before for now, before in zip(waits(tiny), plain, strict=True)]
    first = {"transformer": 0}
    for call, row in enumerate(backend.summary().rows):
        first.setdefault(row.transformer, call)
    assert backend.summary().blocks_skipped
    assert [call for call, count in enumerate(extra) if count] == list(first.values())


@pytest.mark.parametrize("name", TIMED)
def test_a_run_known_beforehand_is_that_which_is_measured_step_by_step(name: str) -> None:
    threshold = threshold_for(name, COEFFICIENTS)
    tiny = build(name)
    options: dict[str, Any] = {"coefficients": COEFFICIENTS, "rel_l1_thresh": threshold}
    backend: Any = enable_cache(tiny.pipe, "tea_cache", **options)
    with recorded(tiny) as calls:
        tiny.run(STEPS)
    summary = backend.summary()
    for transformer, branches in calls.items():
        model = build(name).transformers[transformer]
        with torch.no_grad(), enable_cache(model, "tea_cache", **options) as told:
            run_told(told, model, branches[0])  # type: ignore[arg-type]
        first = min(row.step for row in summary.rows if row.transformer == transformer)
        branch = tiny.spec.branches[0]
        stepwise = {step + first: sum for step, sum in told.summary().diffs().items()}
        assert summary.diffs(transformer, branch) == pytest.approx(stepwise, rel=1e-5)
        assert summary.cached_steps(transformer, branch) == [
            first + step for step in told.summary().cached_steps()
        ]


def test_where_the_time_decides_neither_prompt_nor_seed_nor_batch_changes_anything() -> None:
    found = {}
    for name in ("cogvideox", "flux"):
        threshold = threshold_for(name, COEFFICIENTS)
        tiny = build(name)
        backend: Any = enable_cache(
            tiny.pipe, "tea_cache", coefficients=COEFFICIENTS, rel_l1_thresh=threshold
        )
        runs = []
        for more in (
            {},
            {"seed": 3},
            {"prompt_embeds": tiny.spec.arguments(1)["prompt_embeds"] + 1},
            {"batch": 2},
        ):
            tiny.run(STEPS, **more)
            runs.append(backend.summary().diffs())
        found[name] = runs
    assert all(run == found["cogvideox"][0] for run in found["cogvideox"])
    assert found["flux"][1] != found["flux"][0]


class Halved:
    """A pipeline of somebody's own, that gives its transformer half of what its scheduler says."""

    def __init__(self) -> None:
        self.transformer: Any = build_transformer("wan")
        self.scheduler = build("wan").pipe.scheduler

    def run(self) -> list[dict[str, Any]]:
        calls = inputs("wan", STEPS)
        self.scheduler.set_timesteps(STEPS)
        for arguments, time in zip(calls, self.scheduler.timesteps, strict=True):
            arguments["timestep"] = 0.5 * time.expand(1)
            noise = self.transformer(**arguments)[0]
            self.scheduler.step(noise, time, arguments["hidden_states"])
        return calls


@torch.no_grad()
def test_a_transformer_that_is_given_other_numbers_than_its_scheduler_has_is_measured_step_by_step() -> None:
    pipeline = Halved()
    backend: Any = enable_cache(pipeline, "tea_cache", coefficients="identity", rel_l1_thresh=1e-9)
    calls = pipeline.run()
    moves = differences(signals_of(build_transformer("wan"), calls))
    assert backend.summary().diffs() == pytest.approx(dict(enumerate(moves[1:], 1)), rel=1e-5)


def test_each_expert_computes_its_first_step_and_embeds_the_time_itself() -> None:
    tiny = build("wan22")
    backend: Any = enable_cache(tiny.pipe, "tea_cache", coefficients="identity", rel_l1_thresh=50.0)
    tiny.run(STEPS)
    summary = backend.summary()
    sums = {}
    for name in ("transformer", "transformer_2"):
        steps = [row.step for row in summary.rows if row.transformer == name and row.branch == "cond"]
        for branch in ("cond", "uncond"):
            assert summary.cached_steps(name, branch) == steps[1:]
        sums[name] = list(summary.diffs(name, "cond").values())
    assert sums["transformer"][0] != sums["transformer_2"][0]


def test_an_expert_may_have_its_own_threshold() -> None:
    tiny = build("wan22")
    backend: Any = enable_cache(
        tiny.pipe,
        "tea_cache",
        coefficients="identity",
        rel_l1_thresh=50.0,
        overrides={"transformer_2": {"rel_l1_thresh": 0.0}},
    )
    tiny.run(STEPS)
    assert backend.summary().cached_steps("transformer", "cond")
    assert not backend.summary().cached_steps("transformer_2", "cond")


@torch.no_grad()
def test_branches_are_compared_with_themselves() -> None:
    """One branch stands still and the other moves: each is decided by its own."""
    moves = [0.0] + [0.1] * 7
    model = Toy(adds, adds)
    backend: Any = enable_cache(model, "tea_cache", card=READ, coefficients="identity", rel_l1_thresh=0.25)
    for step, moved in enumerate(drifting(moves)):
        for branch, tensor in (("cond", moved), ("uncond", image())):
            with backend.step(step, len(moves), branch):
                model(tensor)
    assert backend.summary().cached_steps(branch="cond") == [1, 2, 4, 5, 7]
    assert backend.summary().cached_steps(branch="uncond") == list(range(1, 8))


@torch.no_grad()
def test_a_branch_that_was_left_out_is_compared_with_its_last_call() -> None:
    moves = [0.0] + [0.1] * 7
    model = Toy(adds, adds)
    backend: Any = enable_cache(model, "tea_cache", card=READ, coefficients="identity", rel_l1_thresh=0.25)
    for step, moved in enumerate(drifting(moves)):
        if step not in (2, 3):
            with backend.step(step, len(moves), "uncond"):
                model(moved)
    assert backend.summary().diffs()[4] == pytest.approx(0.1 + 1.1**3 - 1, rel=1e-4)
    told: Any = enable_cache(
        wan := build_transformer("wan"), "tea_cache", coefficients="identity", rel_l1_thresh=9.0
    )
    run = inputs("wan", 4)
    for step in (0, 1, 3):
        with told.step(step, 4):
            wan(**run[step])
    signals = signals_of(build_transformer("wan"), [run[0], run[1], run[3]])
    assert told.summary().diffs()[3] == pytest.approx(sum(differences(signals)), rel=1e-5)


def test_the_second_run_is_as_the_first_and_nothing_is_held_between() -> None:
    for name in ("flux", "wan"):
        tiny = build(name)
        backend: Any = enable_cache(
            tiny.pipe,
            "tea_cache",
            coefficients=COEFFICIENTS,
            rel_l1_thresh=threshold_for(name, COEFFICIENTS),
        )
        first, steps = tiny.run(STEPS), backend.summary().cached_steps()
        assert steps
        assert not backend.held_tensors()
        assert torch.equal(tiny.run(STEPS), first)
        assert backend.summary().cached_steps() == steps


def test_within_a_run_a_branch_holds_its_signal_and_a_residual_for_each_stream() -> None:
    model = build_transformer("flux")
    backend: Any = enable_cache(model, "tea_cache", coefficients="identity", rel_l1_thresh=9.0)
    run_told_first = inputs("flux", 4)
    with torch.no_grad():
        for step in range(2):
            with backend.step(step, 4):
                model(**run_told_first[step])
    assert sorted(tuple(tensor.shape) for tensor in backend.held_tensors()) == [
        (1, 8, 32),
        (1, 16, 32),
        (1, 16, 32),
    ]


@torch.no_grad()
def test_a_calibrator_foretells_what_is_skipped() -> None:
    run = [image() + 0.03 * step * image(seed=5) for step in range(STEPS)]
    plain = [Toy(adds, adds)(tensor)[0] for tensor in run]
    errors = {}
    for calibrator in ("none", "taylorseer"):
        model = Toy(adds, adds)
        backend: Any = enable_cache(
            model,
            "tea_cache",
            card=READ,
            coefficients="identity",
            rel_l1_thresh=9.0,
            start_step=6,
            calibrator=calibrator,
        )
        for step, tensor in enumerate(run):
            with backend.step(step, STEPS):
                found = model(tensor)[0]
        assert backend.summary().cached_steps() == [6, 7, 8, 9]
        errors[calibrator] = relative(found, plain[-1])
    assert errors["taylorseer"] < 0.5 * errors["none"]


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_models_are_skipped_at_the_same_steps(whole: bool) -> None:
    run = inputs("flux", STEPS)
    model: Any = flux(num_layers=2, num_single_layers=2)
    threshold = mixing(differences(signals_of(model, run)), [1.0, 0.0])
    options: dict[str, Any] = {"coefficients": "identity", "rel_l1_thresh": threshold}
    with enable_cache(model, "tea_cache", **options) as backend:
        expected = run_told(backend, model, run)  # type: ignore[arg-type]
        steps = backend.summary().cached_steps()
    assert steps
    torch._dynamo.reset()
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.compile_repeated_blocks(backend="eager", fullgraph=True)
    with enable_cache(model, "tea_cache", **options) as backend:
        assert same(run_told(backend, model, run), expected)  # type: ignore[arg-type]
        assert backend.summary().cached_steps() == steps
        assert not kinds(backend)  # type: ignore[arg-type]
    torch._dynamo.reset()


def test_the_cards_say_of_which_models_the_time_decides() -> None:
    timed = {
        name
        for name in ("wan", "cogvideox", "consisid", "hidream", "flux", "qwen_image", "mochi")
        if isinstance(card_for(build_transformer(name)).signals[0], TimeSignal)
    }
    assert timed == {"wan", "cogvideox", "consisid", "hidream"}
