"""The host with vLLM-Omni's interface, on real pipelines with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dit_cache_backends import enable_cache
from dit_cache_backends.errors import AlreadyEnabledError, ConfigError, UnknownBackendError
from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams, OmniRequestOutput
from dit_cache_conformance.tiny import build

EAGER = {"residual_diff_threshold": 10.0, "max_warmup_steps": 2}


def flux() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A pipeline without text encoders, a prompt for it, and what its calls need besides."""
    tiny = build("flux")
    arguments = tiny.spec.arguments(1)
    prompt = {"prompt_embeds": arguments.pop("prompt_embeds")}
    extra = {"pooled_prompt_embeds": arguments.pop("pooled_prompt_embeds")}
    return tiny.pipe, prompt, {**arguments, "extra_args": extra}


def sample(
    omni: Omni, prompt: object, settings: dict[str, Any], steps: int = 8, seed: int = 0
) -> OmniRequestOutput:
    params = OmniDiffusionSamplingParams(num_inference_steps=steps, seed=seed, **settings)
    (output,) = omni.generate(prompt, params)
    return output


@pytest.fixture(scope="module")
def dense(painter: Path) -> list[Image.Image]:
    return Omni(str(painter), device="cpu").generate(["a red circle", "a blue square"], SMALL)[0].images


SMALL = OmniDiffusionSamplingParams(
    height=64, width=64, num_inference_steps=6, seed=3, max_sequence_length=14, guidance_scale=1.0
)


def test_the_documented_snippet_runs_with_only_the_import_changed(painter: Path) -> None:
    omni = Omni(
        model=str(painter),
        cache_backend="cache_dit",
        cache_config={"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 4},
    )
    outputs = omni.generate(
        "a large red circle", OmniDiffusionSamplingParams(num_inference_steps=5, height=64, width=64)
    )
    assert isinstance(outputs[0].images[0], Image.Image)
    assert outputs[0].request_output[0].images is outputs[0].images
    assert outputs[0].request_output[0]["images"] is outputs[0].images
    assert outputs[0].final_output_type == "image"
    assert outputs[0].images[0].size == (64, 64)


def test_a_folder_and_the_pipeline_read_from_it_draw_the_same(
    painter: Path, dense: list[Image.Image]
) -> None:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(painter)
    (output,) = Omni(pipeline).generate("a red circle", [SMALL])
    assert np.array_equal(np.asarray(output.images[0]), np.asarray(dense[0]))


def test_without_a_backend_the_pipelines_own_result_comes_out() -> None:
    pipe, prompt, settings = flux()
    expected = build("flux").run(num_inference_steps=8, seed=5)
    output = sample(Omni(pipe), prompt, settings, seed=5)
    assert torch.equal(torch.as_tensor(output.images[0]), expected[0])
    assert output.cache_summary is None


def test_a_backend_skips_the_steps_that_it_skips_when_enabled_by_hand() -> None:
    by_hand = build("flux")
    backend = enable_cache(by_hand.pipe, "cache_dit", **EAGER)
    expected = by_hand.run(num_inference_steps=8)
    pipe, prompt, settings = flux()
    output = sample(Omni(pipe, "cache_dit", EAGER), prompt, settings)
    assert output.cache_summary.cached_steps() == backend.summary().cached_steps()
    assert len(output.cache_summary.cached_steps()) >= 3
    assert torch.equal(torch.as_tensor(output.images[0]), expected[0])


def test_each_output_keeps_the_summary_of_its_own_generation() -> None:
    pipe, prompt, settings = flux()
    omni = Omni(pipe, "cache_dit", EAGER)
    first, second = sample(omni, prompt, settings, steps=8), sample(omni, prompt, settings, steps=4)
    assert len(first.cache_summary.rows) == 8
    assert len(second.cache_summary.rows) == 4


def test_prompts_are_drawn_one_after_the_other_each_as_if_alone(painter: Path) -> None:
    omni = Omni(painter, "cache_dit", EAGER)
    prompts = ["a red circle", {"prompt": "a blue square"}]
    together = omni.generate(prompts, SMALL)
    assert [output.prompt for output in together] == prompts
    assert len({output.request_id for output in together}) == 2
    for prompt, output in zip(prompts, together, strict=True):
        (alone,) = omni.generate(prompt, SMALL)
        assert np.array_equal(np.asarray(alone.images[0]), np.asarray(output.images[0]))


def test_each_prompt_may_have_its_own_parameters() -> None:
    pipe, prompt, settings = flux()
    omni = Omni(pipe, "cache_dit")
    steps = [3, 5]
    params = [OmniDiffusionSamplingParams(num_inference_steps=n, seed=0, **settings) for n in steps]
    assert [len(output.cache_summary.rows) for output in omni.generate([prompt, prompt], params)] == steps
    with pytest.raises(ConfigError, match="2 sampling parameters for 3 prompts"):
        omni.generate([prompt] * 3, params)


def test_a_generator_draws_a_prompt_when_it_is_asked_for_it() -> None:
    pipe, prompt, settings = flux()
    params = OmniDiffusionSamplingParams(num_inference_steps=2, **settings)
    outputs = Omni(pipe).generate([prompt, prompt], params, py_generator=True)
    assert next(outputs).images
    assert len(list(outputs)) == 1


def test_the_seed_decides_and_a_generator_may_be_given_instead() -> None:
    pipe, prompt, settings = flux()
    omni = Omni(pipe)
    first, again, other = (sample(omni, prompt, settings, steps=2, seed=seed).images[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    params = OmniDiffusionSamplingParams(
        num_inference_steps=2, generator=torch.Generator().manual_seed(1), **settings
    )
    assert torch.equal(omni.generate(prompt, params)[0].images[0], first)


def test_several_pictures_of_a_prompt_come_in_one_output(painter: Path) -> None:
    params = OmniDiffusionSamplingParams(
        height=64, width=64, num_inference_steps=2, max_sequence_length=14, num_outputs_per_prompt=2
    )
    assert len(Omni(painter).generate("a red circle", params)[0].images) == 2


def test_timings_tell_the_whole_and_the_transformers_part() -> None:
    pipe, prompt, settings = flux()
    output = sample(Omni(pipe), prompt, settings)
    assert 0 < output.timings["transformer"] < output.timings["total"]
    assert output.metrics == output.stage_durations == output.timings
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks


def test_vllm_omnis_own_default_of_one_frame_is_no_argument_of_a_picture(painter: Path) -> None:
    params = OmniDiffusionSamplingParams(
        height=64, width=64, num_inference_steps=1, max_sequence_length=14, num_frames=1
    )
    assert Omni(painter).generate("a red circle", params)[0].images


def test_a_pipelines_own_call_defaults_fill_in_what_a_request_does_not_say() -> None:
    pipe, prompt, settings = flux()
    pipe.call_defaults = {"num_inference_steps": 3, "guidance_scale": 1.0}
    omni = Omni(pipe, "cache_dit")
    (short,) = omni.generate(prompt, OmniDiffusionSamplingParams(**settings))
    assert len(short.cache_summary.rows) == 3
    assert len(sample(omni, prompt, settings, steps=5).cache_summary.rows) == 5


# What does not fit is refused, before anything is drawn


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_frames": 5}, ["'num_frames'", "FluxPipeline"]),
        ({"extra_args": {"guidence_scale": 3}}, ["'guidence_scale'", "Did you mean 'guidance_scale'"]),
        ({"strength": 0.5, "fps": 8}, ["'fps', 'strength'"]),
    ],
)
def test_a_parameter_that_the_pipeline_does_not_know_is_refused(
    settings: dict[str, Any], words: list[str]
) -> None:
    pipe, prompt, _ = flux()
    with pytest.raises(ConfigError) as caught:
        Omni(pipe).generate(prompt, OmniDiffusionSamplingParams(**settings))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "prompt", [{"promt": "a cat"}, {"negative_prompt": "a cat"}, 7, {"prompt": "a", "image": 1}]
)
def test_a_prompt_in_another_form_is_refused(prompt: object) -> None:
    pipe, _, _ = flux()
    with pytest.raises(ConfigError, match="prompt"):
        Omni(pipe).generate([prompt])


def test_an_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="num_inference_step"):
        OmniDiffusionSamplingParams(num_inference_step=3)  # type: ignore[call-arg]


def test_an_unknown_argument_of_omni_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'cache_backnd'\. Did you mean 'cache_backend'"):
        Omni("demo", cache_backnd="cache_dit")
    with pytest.raises(ConfigError, match=r"'parallel_config'.*leave it out"):
        Omni("demo", parallel_config=None)


@pytest.mark.parametrize("model", [7, None, torch.nn.Linear(1, 1), Path, "a folder that is not there"])
def test_what_is_no_model_is_refused(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="model"):
        Omni(model, device="cpu")


def test_a_wrong_backend_or_option_is_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(UnknownBackendError):
        Omni("no such model", "cache_dot")
    with pytest.raises(ConfigError, match="unknown option 'x'"):
        Omni("no such model", "cache_dit", {"x": 1})
    with pytest.raises(ConfigError, match="dtype"):
        Omni(build("flux").pipe, dtype="float33")


# The pipeline's life


def test_closing_takes_the_cache_off_and_the_pipeline_draws_as_before() -> None:
    pipe, prompt, settings = flux()
    before = sample(Omni(pipe), prompt, settings).images[0]
    with Omni(pipe, "cache_dit", EAGER) as omni:
        cached = sample(omni, prompt, settings).images[0]
        with pytest.raises(AlreadyEnabledError):
            Omni(pipe, "cache_dit")
    assert not torch.equal(cached, before)
    assert torch.equal(sample(Omni(pipe), prompt, settings).images[0], before)


def test_the_environment_names_the_backend_only_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_CACHE_BACKEND", "CACHE_DIT")
    assert Omni(build("flux").pipe, cache_config={"max_warmup_steps": 3}).backend.config.max_warmup_steps == 3
    assert Omni(build("flux").pipe, cache_backend=None).backend is None


def test_a_dtype_is_given_by_name(painter: Path) -> None:
    assert Omni(painter, dtype="bfloat16").pipeline.transformer.dtype == torch.bfloat16
    assert Omni(painter, device="cpu").pipeline.transformer.dtype == torch.float32


def test_the_progress_bar_is_hidden_only_for_the_call_that_asks(painter: Path) -> None:
    pipe, prompt, settings = flux()
    pipe.set_progress_bar_config(desc="mine")
    params = OmniDiffusionSamplingParams(num_inference_steps=1, **settings)
    Omni(pipe).generate(prompt, params, use_tqdm=False)
    assert pipe._progress_bar_config == {"desc": "mine"}
