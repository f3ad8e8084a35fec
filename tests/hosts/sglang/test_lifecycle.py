"""Mount, refresh and unmount on SGLang's denoising stage: each request as on a server that has seen no other."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import DitCacheError
from dit_cache_backends.hosts.sglang.mount import mounted
from dit_cache_backends.strategies.scm import policy_mask

from .conftest import Serving
from .models import TINY
from .real import STEPS, Server, make_batch

EAGER = {"residual_diff_threshold": 1.0, "max_warmup_steps": 1}
KINDS = ("flux", "wan", "hunyuan_video")


def on_a_fresh_server(kind: str, **request: object) -> tuple[Tensor, dict[str, int]]:
    server = Server(kind)
    return server.request(enable_cache_dit=True, **request), dict(server.ran)


@pytest.mark.parametrize("kind", KINDS)
def test_every_request_of_a_server_is_as_on_a_fresh_one(serving: Serving, kind: str) -> None:
    """What cannot be done with cache-dit there: it fails at the second mount of a process, and with HunyuanVideo."""
    serving("cache_dit")
    server = Server(kind)
    requests = [
        {"cache_dit_params": EAGER},
        {"cache_dit_params": EAGER | {"max_warmup_steps": 3}},  # other parameters
        {"cache_dit_params": EAGER, "guided": True},  # guidance switched on
        {"cache_dit_params": EAGER, "guided": True, "steps": 5},  # another number of steps
        {"cache_dit_params": EAGER, "seed": 3},  # and off, another prompt
    ]
    for request in requests:
        latents = server.request(enable_cache_dit=True, **request)
        expected, ran = on_a_fresh_server(kind, **request)
        assert torch.equal(latents, expected), request
        assert server.ran == ran, request
        dense = server.request(seed=request.get("seed", 0))  # off, and on again
        assert torch.equal(dense, Server(kind).request(seed=request.get("seed", 0)))


def test_two_models_are_mounted_at_once(serving: Serving) -> None:
    serving("cache_dit")
    servers = {kind: Server(kind) for kind in KINDS}
    first = {
        kind: each.request(enable_cache_dit=True, cache_dit_params=EAGER) for kind, each in servers.items()
    }
    for kind, server in servers.items():
        assert torch.equal(server.request(enable_cache_dit=True, cache_dit_params=EAGER), first[kind])
        assert torch.equal(first[kind], on_a_fresh_server(kind, cache_dit_params=EAGER)[0])


@pytest.mark.parametrize("kind", [*KINDS, "flux2"])
def test_after_the_unmount_the_transformer_is_as_it_was(serving: Serving, kind: str) -> None:
    serving("cache_dit")
    server = Server(kind)
    server.request()  # some models note things on themselves
    modules = list(server.first.modules())
    before = [(type(module), set(vars(module)), dict(module._forward_hooks)) for module in modules]
    server.request(enable_cache_dit=True)
    assert any(type(module) is not kind for module, (kind, _, _) in zip(modules, before, strict=True))
    server.request()
    assert mounted(server.first) is None
    for module, (cls, names, hooks) in zip(modules, before, strict=True):
        assert type(module) is cls
        assert vars(module).keys() == names
        assert dict(module._forward_hooks) == hooks


def test_wan_keeps_to_its_careful_path_while_mounted_and_takes_its_fast_one_back(serving: Serving) -> None:
    """On a GPU its blocks then leave a part of their sum to the next block, which no cache may do without."""
    serving("cache_dit")
    server = Server("wan")
    assert server.first._plain_blocks()
    server.request(enable_cache_dit=True)
    assert not server.first._plain_blocks()
    server.request()
    assert server.first._plain_blocks()


@pytest.mark.parametrize("gate", [0.25, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_negative_branch_takes_nothing_from_the_positive_one(
    serving: Serving, kind: str, gate: float
) -> None:
    """Forwards counted, those of the positive branch would be taken for the negative one's from the gate on."""
    serving("cache_dit", '{"steps_computation_mask": "10100101", "steps_computation_policy": "static"}')
    server = Server(kind)
    server.request(guided=True, enable_cache_dit=True, cfg_gate_step=gate)
    summary = mounted(server.first).summary()
    assert summary.cached_steps(branch="cond") == [1, 3, 4, 6]
    assert {row.step for row in summary.rows if row.branch == "cond"} == set(range(STEPS))
    made = range(int(STEPS * gate))
    assert {row.step for row in summary.rows if row.branch == "uncond"} == set(made)
    assert summary.cached_steps(branch="uncond") == [step for step in made if step in (1, 3, 4, 6)]
    assert all(row.total == STEPS for row in summary.rows)


def test_a_failed_request_leaves_nothing_behind(serving: Serving) -> None:
    serving("cache_dit")
    server = Server("flux")
    expected = server.request(enable_cache_dit=True, cache_dit_params=EAGER)
    calls = iter(range(100))

    def fail(*_: object) -> None:
        if next(calls) == 5:
            raise RuntimeError("out of memory")

    handle = server.first.transformer_blocks[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        server.request(seed=9, enable_cache_dit=True, cache_dit_params=EAGER)
    handle.remove()
    assert torch.equal(server.request(enable_cache_dit=True, cache_dit_params=EAGER), expected)


def test_after_the_last_step_no_tensor_is_held(serving: Serving) -> None:
    serving("cache_dit")
    server = Server("flux")
    server.request(guided=True, enable_cache_dit=True, cache_dit_params=EAGER)
    assert mounted(server.first).backend.held_tensors() == []


def test_a_refresh_lets_go_of_what_a_request_that_was_given_up_left(serving: Serving) -> None:
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import refresh_context_on_transformer

    serving("cache_dit")
    server = Server("flux")
    server.request(enable_cache_dit=True, cache_dit_params=EAGER)
    for step in range(3):
        call(server, server.first, step)
    assert mounted(server.first).backend.held_tensors()
    refresh_context_on_transformer(server.first, STEPS)
    assert mounted(server.first).backend.held_tensors() == []


def test_a_change_of_resolution_within_a_request_starts_again(serving: Serving) -> None:
    """SGLang's progressive stage refreshes in the middle, where the host's step goes on at 4."""
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import refresh_context_on_transformer
    from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context

    serving("cache_dit", '{"residual_diff_threshold": 1.0, "max_warmup_steps": 2}')
    server = Server("wan")
    server.request(enable_cache_dit=True)
    refresh_context_on_transformer(server.first, 8)
    random = torch.Generator().manual_seed(0)
    prompt = TINY["wan"].prompt(random, server.first)
    server.ran.clear()
    ran = []
    for step in range(8):
        if step == 4:
            refresh_context_on_transformer(server.first, 4, scm_preset=None)
        side = 4 if step < 4 else 8
        batch = make_batch(8)
        with set_forward_context(step, None, forward_batch=batch):
            latents = torch.randn(1, 4, 2, side, side, generator=random)
            server.first(hidden_states=latents, timestep=torch.tensor([900.0 - 100 * step]), **prompt)
        ran.append(server.ran["blocks.3"])
    assert ran == [1, 2, 2, 2, 3, 4, 4, 4]
    summary = mounted(server.first).summary()
    assert [(row.step, row.total) for row in summary.rows] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert not [event for event in summary.events if event.kind == "shape_changed"]


def test_two_experts_have_masks_of_their_own_length_and_options_of_their_own(serving: Serving) -> None:
    serving(
        "cache_dit",
        SGLANG_CACHE_DIT_SCM_PRESET="ultra",
        SGLANG_CACHE_DIT_SCM_POLICY="static",
        SGLANG_CACHE_DIT_FN="1",
        SGLANG_CACHE_DIT_SECONDARY_FN="2",
    )
    server = Server("wan", second="wan")
    server.request(20, enable_cache_dit=True)
    high = 20 - server.low
    assert server.ran["blocks.0"] == high
    assert server.ran["blocks.1"] == server.ran["blocks.3"] == sum(policy_mask("ultra", high))
    assert server.ran["transformer_2.blocks.1"] == server.low
    assert server.ran["transformer_2.blocks.2"] == sum(policy_mask("ultra", server.low))
    of_second = mounted(server.second).summary("transformer_2")
    assert {row.total for row in of_second.rows} == {server.low}
    assert [row.step for row in of_second.rows] == list(range(server.low))


def test_two_experts_are_served_again_with_other_parameters_and_let_go(serving: Serving) -> None:
    serving("cache_dit")
    server = Server("wan", second="wan")
    dense = server.request()
    never = {"residual_diff_threshold": 0.0}
    assert torch.equal(server.request(enable_cache_dit=True, cache_dit_params=never), dense)
    params = {**EAGER, "secondary": {"residual_diff_threshold": 0.0}}
    first = server.request(enable_cache_dit=True, cache_dit_params=params)
    assert server.ran["blocks.3"] < server.ran["blocks.0"]
    assert server.ran["transformer_2.blocks.3"] == server.low
    assert torch.equal(server.request(enable_cache_dit=True, cache_dit_params=params), first)
    assert torch.equal(server.request(), dense)
    assert mounted(server.first) is None
    assert mounted(server.second) is None


def test_the_first_of_two_experts_that_sglang_takes_off_takes_both(serving: Serving) -> None:
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import disable_cache_on_transformer

    serving("cache_dit")
    server = Server("wan", second="wan")
    server.request(enable_cache_dit=True)
    assert disable_cache_on_transformer(server.second) is server.second
    assert mounted(server.first) is None
    assert disable_cache_on_transformer(server.first) is server.first


MASK = '{"steps_computation_mask": "10110101", "steps_computation_policy": "static", "max_warmup_steps": 0}'
CACHED = [1, 4, 6]


def call(server: Server, model: nn.Module, step: int, negative: bool | None = False) -> Tensor:
    """One call of a transformer in the host's step ``step``; without a batch where ``negative`` is None."""
    from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context

    tiny, random = TINY[server.kind], torch.Generator().manual_seed(step)
    batch = None if negative is None else make_batch(STEPS)
    if batch is not None:
        batch.is_cfg_negative = negative
    latents, timestep = tiny.names
    given = {latents: torch.randn(tiny.latents, generator=random), timestep: torch.tensor([0.5])}
    with set_forward_context(step, None, forward_batch=batch):
        return model(**given, **tiny.prompt(random, model))


def test_two_transformers_that_run_in_each_step_of_a_stage_that_counts_down(serving: Serving) -> None:
    """Ideogram 4: one with the prompt, one without, and the steps are numbered from the last one."""
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import (
        CacheDitConfig,
        enable_cache_on_dual_transformer,
        refresh_context_on_transformer,
    )

    serving("cache_dit", MASK)
    server = Server("ideogram4", second="ideogram4")
    config = CacheDitConfig(enabled=True, num_inference_steps=STEPS)
    enable_cache_on_dual_transformer(server.first, server.second, config, config, model_name="ideogram4")
    for _ in range(2):
        for step in reversed(range(STEPS)):
            for model in (server.first, server.second):
                call(server, model, step)
        for name, model in (("transformer", server.first), ("transformer_2", server.second)):
            assert mounted(model).summary(name).cached_steps() == CACHED
            refresh_context_on_transformer(model, STEPS)


@pytest.mark.parametrize(
    ("sides", "branches"),
    [
        ((False, True, True), {"cond", "uncond", "uncond 2"}),
        ((None, None), {"call", "call 2"}),  # LTX-2 gives no batch
    ],
)
def test_calls_that_the_batch_does_not_tell_apart_keep_their_order_in_the_step(
    serving: Serving, sides: tuple[bool | None, ...], branches: set[str]
) -> None:
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import (
        CacheDitConfig,
        enable_cache_on_transformer,
    )

    serving("cache_dit", MASK)
    server = Server("flux")
    enable_cache_on_transformer(server.first, CacheDitConfig(enabled=True, num_inference_steps=STEPS))
    for step in range(STEPS):
        for negative in sides:
            call(server, server.first, step, negative)
    summary = mounted(server.first).summary()
    assert {row.branch for row in summary.rows} == branches
    assert all(summary.cached_steps(branch=branch) == CACHED for branch in branches)


@pytest.mark.parametrize("joint", [False, True])
def test_decisions_agree_over_the_groups_that_sglang_hands_over(
    serving: Serving, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of one process, whose sums are its own: what is added up over it can be counted."""
    import torch.distributed as dist
    from sglang.multimodal_gen.runtime.cache.cache_dit_integration import (
        CacheDitConfig,
        enable_cache_on_transformer,
    )
    from sglang.multimodal_gen.runtime.distributed import parallel_state

    serving("cache_dit", '{"residual_diff_threshold": 0.99, "max_warmup_steps": 1}')
    handed, whole = (dist.new_group([0]) for _ in range(2))
    over: list[object] = []
    add_up = dist.all_reduce
    monkeypatch.setattr(
        dist,
        "all_reduce",
        lambda value, *rest, group=None, **more: (over.append(group), add_up(value, group=group)),
    )
    monkeypatch.setattr(parallel_state, "get_dit_group", lambda: whole)
    monkeypatch.setattr(parallel_state, "get_classifier_free_guidance_world_size", lambda: 2)
    server = Server("wan")
    config = CacheDitConfig(enabled=True, num_inference_steps=STEPS)
    enable_cache_on_transformer(server.first, config, sp_group=handed, joint_cfg_decision=joint)
    for step in range(STEPS):
        call(server, server.first, step)
    assert mounted(server.first).summary().cached_steps()
    assert set(over) == {whole if joint else handed}


def test_what_a_stage_sets_by_itself_wins(serving: Serving) -> None:
    """As MiniMax-H3 with quality=high does; the option is neither in the environment nor in the request."""
    serving("cache_dit", '{"max_warmup_steps": 1}', SGLANG_CACHE_DIT_RDT="1.0")
    server = Server("flux")
    server.request(enable_cache_dit=True)
    assert server.ran["single_transformer_blocks.2"] < STEPS
    made = server.stage._build_cache_dit_config

    def careful(*arguments: object, **more: object) -> object:
        config = made(*arguments, **more)
        config.residual_diff_threshold = 0.0
        return config

    server.stage._build_cache_dit_config = careful
    server.request(enable_cache_dit=False)
    server.request(enable_cache_dit=True)
    assert server.ran["single_transformer_blocks.2"] == STEPS


def test_flux2_gives_sums_while_mounted_where_its_blocks_would_leave_them_open(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Blackwell a block may give (residual, update, gate), which the next one adds up."""
    from sglang.multimodal_gen.runtime.models.dits import flux_2

    monkeypatch.setattr(flux_2, "can_defer_flux2_gated_residual", lambda *_: True)
    serving("cache_dit", '{"residual_diff_threshold": 0.0}')
    server = Server("flux2")
    given: list[object] = []
    handle = server.first.single_transformer_blocks[0].register_forward_hook(
        lambda *all: given.append(all[2])
    )
    dense = server.request()
    assert isinstance(given[0], tuple)
    handle.remove()
    torch.testing.assert_close(server.request(enable_cache_dit=True), dense)
    server.request(enable_cache_dit=True, cache_dit_params=EAGER)
    assert server.ran["single_transformer_blocks.2"] < STEPS
    assert torch.equal(server.request(), dense)


def test_a_copy_of_a_mounted_transformer_is_plain(serving: Serving) -> None:
    """A shallow one: its process groups allow no other."""
    serving("cache_dit")
    server = Server("flux")
    own = type(server.first)
    server.request(enable_cache_dit=True, cache_dit_params=EAGER)
    assert type(server.first) is not own
    assert type(copy.copy(server.first)) is own


def test_a_mounted_model_that_nobody_holds_any_more_is_let_go(serving: Serving) -> None:
    serving("cache_dit")
    server = Server("flux")
    server.request(enable_cache_dit=True, cache_dit_params=EAGER)
    gone = weakref.ref(server.first)
    del server
    gc.collect()
    assert gone() is None


def test_a_call_without_a_step_is_refused(serving: Serving) -> None:
    from sglang.multimodal_gen.runtime.managers.forward_context import set_forward_context

    serving("cache_dit")
    server = Server("flux")
    server.request(enable_cache_dit=True)
    prompt = TINY["flux"].prompt(torch.Generator().manual_seed(0), server.first)
    arguments = {"hidden_states": torch.randn(1, 16, 8), "timestep": torch.tensor([500.0]), **prompt}
    with (
        set_forward_context(None, None, forward_batch=make_batch(8)),
        pytest.raises(DitCacheError, match="current_timestep"),
    ):
        server.first(**arguments)
