"""How the model is run beside the cache: attention, precision, compilation, processes; and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from dit_cache_backends.errors import ConfigError, PlacementError
from dit_cache_backends.hosts.engine import Engine
from dit_cache_backends.hosts.omni import Omni
from dit_cache_conformance.state import differences, state_of
from dit_cache_conformance.tiny import build

from .engine_runs import EAGER, Case, alone, hand_in, latents

EAGER_CASE = Case(6, 1, "cache_dit", EAGER)


def drawn(case: Case = EAGER_CASE, pipe: Any = None, **placement: Any) -> torch.Tensor:
    with Engine(build("flux").pipe if pipe is None else pipe, **placement) as engine:
        output = hand_in(engine, "flux", case).result(120)
    if case.backend is not None:
        assert output.cache_summary.cached_steps() == [2, 3, 4]
    return latents(output)


def test_an_attention_backend_is_set_and_draws_the_same() -> None:
    pipe = build("flux").pipe
    found = drawn(pipe=pipe, attention_backend="native")
    assert torch.equal(found, alone("flux", EAGER_CASE))
    chosen = {block.attn.processor._attention_backend.value for block in pipe.transformer.transformer_blocks}
    assert chosen == {"native"}


@pytest.mark.parametrize("case", [Case(6, 1), EAGER_CASE])
def test_weights_are_quantized_in_the_repeated_blocks(case: Case) -> None:
    pipe = build("flux").pipe
    found = drawn(case, pipe, quantize_config={"quant_type": "int8_weight_only", "exclude_layers": ["ff"]})
    expected = alone("flux", case)
    off = (found - expected).norm() / expected.norm()
    assert 0 < off < 0.05
    quantized = {
        name
        for name, module in pipe.transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module.weight.data) is not torch.Tensor
    }
    assert quantized
    assert all(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in quantized)
    assert not any("ff" in name for name in quantized)


@pytest.mark.parametrize("case", [Case(6, 1), EAGER_CASE])
def test_the_repeated_blocks_are_compiled(case: Case) -> None:
    pipe = build("flux").pipe
    found = drawn(case, pipe, compile={"backend": "eager"})
    assert torch.equal(found, alone("flux", case))
    compiled = [module for module in pipe.transformer.modules() if module._compiled_call_impl is not None]
    assert len(compiled) == 12


def test_compiled_requests_with_different_caches_take_turns() -> None:
    cases = [EAGER_CASE, Case(5, 2), Case(7, 3, "dbprune", {**EAGER, "max_warmup_steps": 1})]
    with Engine(build("flux").pipe, compile={"backend": "eager"}) as engine:
        outputs = [each.result(120) for each in [hand_in(engine, "flux", case) for case in cases]]
    for case, output in zip(cases, outputs, strict=True):
        assert torch.equal(latents(output), alone("flux", case))


@pytest.mark.parametrize(
    ("placement", "error", "words"),
    [
        ({"attention_backend": "nativ"}, ConfigError, "Did you mean 'native'"),
        ({"attention_backend": "_native_cudnn"}, PlacementError, "cannot compute in torch.float32 on cpu"),
        ({"quantize_config": {"quant_type": "float8_per_row"}}, PlacementError, "not to be had on a CPU"),
        (
            {"quantize_config": {"quant_type": "int8_weights_only"}},
            PlacementError,
            "Did you mean 'int8_weight_only'",
        ),
        ({"quantize_config": {"svdq_kwargs": {"a": 1}}}, PlacementError, "SVDQuant"),
        ({"quantize_config": {"quant_typ": "int8"}}, ConfigError, "quant_type"),
        ({"compile": {"backend": "eagre"}}, ConfigError, "Did you mean 'eager'"),
        ({"compile": {"mood": "default"}}, ConfigError, "mode"),
        ({"parallelism_config": {"ulysses_size": 2}}, PlacementError, "torchrun"),
        ({"parallelism_config": {"ulysses_size": "auto"}}, PlacementError, "torchrun"),
        ({"parallelism_config": {"ring_size": 2}}, PlacementError, "ring_size 2 is not to be had on a CPU"),
        (
            {"parallelism_config": {"tp_size": "auto"}},
            PlacementError,
            "tp_size auto is not to be had on a CPU",
        ),
        ({"parallelism_config": {"tp_size": 2, "ulysses_size": 2}}, PlacementError, "at once"),
        ({"parallelism_config": {"ulysses_size": 2, "ulysses_anything": True}}, PlacementError, "gloo"),
        ({"parallelism_config": {"ulysses_float8": True}}, PlacementError, "ulysses_float8"),
        ({"parallelism_config": {"ulyses_size": 2}}, ConfigError, "ulysses_size"),
    ],
)
def test_what_cannot_be_had_here_is_refused_with_its_reason_and_nothing_is_touched(
    placement: dict[str, Any], error: type, words: str
) -> None:
    tiny = build("flux")
    before = state_of(tiny.pipe.transformer)
    with pytest.raises(error, match=words):
        Engine(tiny.pipe, "cache_dit", EAGER, **placement)
    assert not differences(before, state_of(tiny.pipe.transformer))


def test_omni_refuses_before_the_model_is_loaded() -> None:
    with pytest.raises(PlacementError, match="torchrun"):
        Omni("no such model", parallelism_config={"ulysses_size": 2}, device="cpu")
    with pytest.raises(ConfigError, match="Did you mean 'native'"):
        Omni("no such model", attention_backend="nativ")


def test_the_sections_of_a_file_reach_the_model(tmp_path: Any) -> None:
    file = tmp_path / "cache.yaml"
    file.write_text(
        "cache_backend: cache_dit\n"
        "cache_config:\n  residual_diff_threshold: 10.0\n  max_warmup_steps: 2\n"
        "attention_backend: native\n"
        "quantize_config:\n  quant_type: int8_weight_only\n"
    )
    tiny = build("flux")
    with Omni(tiny.pipe, cache_config=str(file)) as omni:
        assert omni.backend is not None
        assert omni.backend.config.residual_diff_threshold == 10.0
    block = tiny.pipe.transformer.transformer_blocks[0]
    assert block.attn.processor._attention_backend.value == "native"
    assert type(block.attn.to_q.weight.data) is not torch.Tensor


def test_the_engine_imports_no_diffusers_until_it_is_used() -> None:
    code = (
        "import sys, dit_cache_backends, dit_cache_backends.hosts.engine, dit_cache_backends.hosts.omni;"
        "print([name for name in ('diffusers', 'transformers', 'torchao', 'torch._dynamo') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
