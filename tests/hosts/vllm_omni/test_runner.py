"""What vLLM-Omni's runner asks of a cache, from its loading to the end of a request."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from vllm_omni.diffusion.data import DiffusionRequestAbortedError
from vllm_omni.diffusion.distributed import parallel_state
from vllm_omni.diffusion.worker.request_batch import DiffusionRequestBatch

from dit_cache_backends import (
    AlreadyEnabledError,
    CacheBackend,
    ConfigError,
    Decision,
    Gate,
    Place,
    Probe,
    Step,
    UnknownTransformerError,
    get_cache_backend,
)
from dit_cache_backends.hosts.vllm_omni import groups
from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend
from dit_cache_backends.hosts.vllm_omni.plugin import register
from dit_cache_backends.pipelines import transformers_of

from ...engine.strategies import Planned
from .counting import executed
from .running import QWEN, draw, request, runner
from .tiny import TINY, Moment
from .tiny_more import TINY as MORE

pytestmark = pytest.mark.usefixtures("one_rank")

EAGER = {"residual_diff_threshold": 0.8}
LISTS = ["transformer_blocks"]


@pytest.fixture(autouse=True)
def opened() -> None:
    register()


def make_backend(name: str, **options: Any) -> CacheBackend:
    made = get_cache_backend(name, options)
    assert made is not None
    return made


@contextlib.contextmanager
def said() -> Iterator[list[str]]:
    """What is logged below vLLM-Omni's logger by us."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("vllm_omni.dit_cache_backends")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def test_it_is_enabled_when_the_pipeline_is_loaded_and_says_on_what() -> None:
    with said() as lines:
        made = runner("dbprune")
    assert made.cache_backend.enabled is True
    assert made.cache_backend.is_enabled() is True
    assert any("transformer (QwenImageTransformer2DModel)" in line for line in lines)
    made.cache_backend.disable(made.pipeline)
    assert made.cache_backend.enabled is False
    assert "enabled=False" in repr(made.cache_backend)


def test_the_warm_up_of_two_steps_and_what_follows_it_are_runs_of_their_own() -> None:
    made = runner("dcb:cache_dit", EAGER)
    fresh = runner("dcb:cache_dit", EAGER)
    draw(made, request(steps=2, height=512, width=512, guidance_scale=0.0))
    assert {row.total for row in made.cache_backend.summary().rows} == {2}
    assert made.cache_backend.summary().blocks_skipped == 0
    assert torch.equal(draw(made), draw(fresh))
    assert {row.total for row in made.cache_backend.summary().rows} == {12}
    assert made.cache_backend.summary().blocks_skipped > 0


@pytest.mark.parametrize("sizes", [(64, 96), (96, 64)])
def test_requests_of_any_size_and_number_of_steps_follow_each_other_as_if_alone(
    sizes: tuple[int, int],
) -> None:
    made = runner("dcb:cache_dit", EAGER)
    asked: list[dict[str, Any]] = [
        {"steps": 12, "seed": 1},
        {"steps": 7, "seed": 2, "height": sizes[0], "width": sizes[1]},
        {"steps": 20, "prompt": "a green sphere"},
        {"steps": 12, "negative": None},
        {"steps": 12, "seed": 1},
    ]
    found = [draw(made, request(**each)) for each in asked]
    alone = [draw(runner("dcb:cache_dit", EAGER), request(**each)) for each in asked[:4]]
    assert all(torch.equal(one, other) for one, other in zip(found, [*alone, alone[0]], strict=True))


def test_without_a_number_of_steps_the_runner_says_nothing_and_a_new_run_is_seen_all_the_same() -> None:
    """vLLM-Omni then warns that it cannot refresh the cache, and leaves it as it is."""
    made = runner("dcb:cache_dit", EAGER)
    told = runner("dcb:cache_dit", EAGER)
    asked = [None, 7, None]
    for steps in asked:
        found = draw(made, request(steps=steps))
        assert torch.equal(found, draw(told, request(steps=steps or 50)))
        assert {row.total for row in made.cache_backend.summary().rows} == {steps or 50}


def test_the_engine_itself_tells_two_runs_apart_where_nobody_refreshes_or_ends_anything() -> None:
    """The pipeline's own forward, called twice without the runner: in the second run nothing is left of the first."""
    made = runner("dcb:cache_dit", EAGER)
    expected = draw(runner("dcb:cache_dit", EAGER))
    for _ in range(2):
        asked = request()
        made._initialize_generator(asked.sampling_params)
        with torch.inference_mode():
            (output,) = made.pipeline.forward(DiffusionRequestBatch(requests=[asked]))
        assert torch.equal(output.output, expected)
        rows = [row for row in made.cache_backend.summary().rows if row.branch == "0"]
        assert [row.step for row in rows] == list(range(12))
        assert rows[0].blocks_skipped == 0


def test_positive_and_negative_prompts_are_branches_of_their_own() -> None:
    made = runner("dcb:cache_dit", EAGER)
    draw(made)
    series = made.cache_backend.summary().series()
    assert [branch for _, branch, _ in series] == ["0", "1"]
    draw(made, request(negative=None))
    assert [branch for _, branch, _ in made.cache_backend.summary().series()] == ["0"]


def test_a_batch_of_requests_is_one_run() -> None:
    made = runner("dcb:cache_dit", EAGER)
    asked = [request("a red cube", seed=1), request("a green sphere", seed=2)]
    outputs = made._execute_request_list(
        asked,
        od_config=made.od_config,
        allow_single_output=False,
        require_request_batch_support=True,
        record_name="test",
    )
    assert all(outputs[each.request_id].result.output.isfinite().all() for each in asked)
    assert made.cache_backend.summary().blocks_skipped > 0
    assert {row.total for row in made.cache_backend.summary().rows} == {12}


@pytest.mark.parametrize("error", [RuntimeError, DiffusionRequestAbortedError])
def test_nothing_is_kept_when_a_request_is_over_fails_or_is_cancelled(error: type[Exception]) -> None:
    made = runner("dcb:cache_dit", EAGER)
    draw(made)
    assert not made.cache_backend.backend.held_tensors()
    step = made.pipeline.scheduler_step_maybe_with_cfg
    calls: list[int] = []
    held: list[int] = []

    def breaks(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            held.append(len(made.cache_backend.backend.held_tensors()))
            raise error("in the middle")
        return step(*args, **kwargs)

    made.pipeline.scheduler_step_maybe_with_cfg = breaks
    with contextlib.suppress(RuntimeError):
        made.execute_model(request())
    assert held[0] > 0
    assert not made.cache_backend.backend.held_tensors()
    del made.pipeline.scheduler_step_maybe_with_cfg
    assert torch.equal(draw(made), draw(runner("dcb:cache_dit", EAGER)))


def test_loading_another_pipeline_in_the_same_process_lets_the_first_one_go() -> None:
    made = runner("dcb:cache_dit", EAGER)
    draw(made)
    old = weakref.ref(made.pipeline.transformer)
    made.load_model(load_format="custom_pipeline", custom_pipeline_name=f"{__package__}.pipelines.{QWEN}")
    gc.collect()
    assert old() is None
    assert torch.equal(draw(made), draw(runner("dcb:cache_dit", EAGER)))


@pytest.mark.parametrize("name", ["dbprune", "dcb:cache_dit", "easy_cache"])
def test_the_summary_that_vllm_omni_offers_for_its_cache_dit_is_printed_for_each_of_ours(name: str) -> None:
    for wanted in (True, False):
        made = runner(name, enable_cache_dit_summary=wanted)
        with said() as lines:
            draw(made)
        assert any("blocks run" in line and "cached steps" in line for line in lines) is wanted


def test_it_works_on_blocks_that_were_compiled_before_it_was_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regional compilation: each block's `forward` is another function by then."""
    compiled: list[Any] = []

    def compile_(forward: Any, *_: Any, **__: Any) -> Any:
        compiled.append(forward)
        return lambda *args, **kwargs: forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_)
    made = runner("dcb:cache_dit", EAGER, eager=False)
    monkeypatch.undo()
    assert len(compiled) == 4
    assert all("forward" in vars(block) for block in made.pipeline.transformer.transformer_blocks)
    with executed(made.pipeline.transformer, LISTS) as ran:
        found = draw(made)
    assert torch.equal(found, draw(runner("dcb:cache_dit", EAGER)))
    assert len(ran) < 12 * 2 * 4
    made.cache_backend.disable(made.pipeline)
    assert all("forward" in vars(block) for block in made.pipeline.transformer.transformer_blocks)


class Stranger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])


class StrangersPipeline(nn.Module):
    _dit_modules = ("inner.model", "transformer")

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.model = Stranger()
        self.transformer = None


def test_a_pipeline_of_which_nothing_is_known_is_refused_by_the_names_of_its_transformers() -> None:
    made = runner("dcb:cache_dit", EAGER)
    with pytest.raises(
        UnknownTransformerError, match=r"inner\.model \(.*Stranger\).*QwenImageTransformer2DModel"
    ):
        made.cache_backend.enable(StrangersPipeline())
    assert made.cache_backend.is_enabled()


def test_a_second_cache_on_one_pipeline_is_refused() -> None:
    made = runner("dcb:cache_dit", EAGER)
    with pytest.raises(AlreadyEnabledError):
        HostedBackend(make_backend("dbprune")).enable(made.pipeline)


class Dotted(nn.Module):
    """As Cosmos 3 and HiDream-O1 name parts of their transformers."""

    _dit_modules = ("outer.model.language_model", "outer")

    def __init__(self, outer: nn.Module) -> None:
        super().__init__()
        self.outer = outer


def test_a_dotted_name_of_a_part_finds_the_transformer_around_it_that_has_a_card() -> None:
    model = MORE["hidream_o1"].build()
    assert transformers_of(Dotted(model)) == {"outer": model}


class Experts(nn.Module):
    """As Wan 2.2 has them: its own pipeline needs encoders of gigabytes."""

    _dit_modules = ("transformer", "transformer_2")

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = TINY["wan"].build(), TINY["wan"].build()
        self.boundary_ratio = 0.875
        self.scheduler = FlowMatchEulerDiscreteScheduler()

    def run(self, steps: int) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        latents = TINY["wan"].inputs(Moment())["hidden_states"]
        for time in self.scheduler.timesteps:
            first = time >= self.boundary_ratio * self.scheduler.config.num_train_timesteps
            model = self.transformer if first else self.transformer_2
            arguments = TINY["wan"].inputs(Moment()) | {"hidden_states": latents, "timestep": time[None]}
            guess = [model(**arguments).sample for _ in range(2)]
            latents = self.scheduler.step(guess[0] + guess[1], time, latents).prev_sample
        return latents


class Noting(Planned):
    """Runs everything, and notes how many steps each transformer is said to make."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.totals: set[tuple[str, int | None]] = set()

    def gate(self, place: Place) -> Gate:
        outer, inner = self, super().gate(place)

        class Asked(Gate):
            def should_run(self, step: Step, probe: Probe) -> Decision:
                outer.totals.add((place.transformer, step.total))
                return inner.should_run(step, probe)

        return Asked()


@torch.no_grad()
def test_each_of_two_experts_makes_steps_of_its_own() -> None:
    """How many is known from the pipeline's `boundary_ratio` before the second one takes over."""
    pipeline = Experts()
    whole = pipeline.run(20)
    high = int((pipeline.scheduler.timesteps >= 875).sum())
    assert 2 < high < 10
    noting = Noting({"plan": "1"})
    hosted = HostedBackend(noting)
    hosted.enable(pipeline)
    hosted.refresh(pipeline, 20)
    assert torch.equal(pipeline.run(20), whole)
    assert noting.totals == {("transformer", high), ("transformer_2", 20 - high)}
    hosted.disable(pipeline)
    hosted = HostedBackend(make_backend("cache_dit", residual_diff_threshold=0.8, max_warmup_steps=2))
    hosted.enable(pipeline)
    hosted.refresh(pipeline, 20)
    found = pipeline.run(20)
    for name, steps in {"transformer": range(high), "transformer_2": range(high, 20)}.items():
        rows = [row for row in hosted.summary().rows if row.transformer == name and row.branch == "0"]
        assert [row.step for row in rows] == list(steps)
        assert [row.blocks_skipped for row in rows[:2]] == [0, 0]
        assert any(row.blocks_skipped for row in rows[2:])
    assert 0 < float((found - whole).norm() / whole.norm()) < 0.2


def test_blocks_that_lie_on_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_state, "_PP", SimpleNamespace(world_size=2))
    with pytest.raises(ConfigError, match="pipeline parallelism"):
        groups.refuse_pipeline_stages("cache_dit")
