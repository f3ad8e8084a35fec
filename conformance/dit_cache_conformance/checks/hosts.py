"""The same tensors whoever drives the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dit_cache_backends import Omni, OmniDiffusionSamplingParams, enable_cache, get_cache_backend
from dit_cache_conformance.check import check, expect, expect_same
from dit_cache_conformance.counting import counted
from dit_cache_conformance.runs import fresh, plain
from dit_cache_conformance.stage import BARE, PIPELINES, STEPS, Bare, Stage, inputs
from dit_cache_conformance.subject import Subject

_PROMPT = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")


@check("hosts", on=PIPELINES)
def every_host_gives_the_same_tensors(subject: Subject, model: str) -> None:
    """``enable`` on a diffusers pipeline, ``enable_cache`` and ``Omni`` give the same bits.

    If this fails, the backend relies on what one host does: on refresh, on an argument, on an attribute it sets.
    """
    expected = fresh(subject, model).latents
    for host, run in {"enable_cache": _enable_cache, "Omni": _omni}.items():
        found = run(subject, model)
        expect(
            found.shape == expected.shape, f"{host}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
        )
        expect_same(found, expected, f"through {host}")


def _enable_cache(subject: Subject, model: str) -> torch.Tensor:
    stage = Stage(model)
    with enable_cache(stage.pipe, subject.cls, **subject.eager):
        return stage.run().latents


def _omni(subject: Subject, model: str) -> torch.Tensor:
    stage = Stage(model)
    arguments = stage.arguments
    prompt = {key: arguments.pop(key) for key in _PROMPT if key in arguments}
    prompt.setdefault("prompt", None)
    given = {key: value for key, value in prompt.items() if value is not None}
    if model == "dit":
        given["prompt_embeds"] = None  # it has class labels instead of a prompt
    params = OmniDiffusionSamplingParams(num_inference_steps=STEPS, seed=0, extra_args=arguments)
    with Omni(stage.pipe, subject.eagerly()) as omni:
        (result,) = omni.generate(given, params, use_tqdm=False)
    if model == "dit":
        latents: torch.Tensor = stage.pipe.vae.latents
        return latents
    return torch.stack(
        [each if isinstance(each, torch.Tensor) else torch.stack(each) for each in result.images]
    )


@check("hosts", on=PIPELINES)
def inference_mode_makes_no_difference(subject: Subject, model: str) -> None:
    """Under ``torch.inference_mode``, as serving hosts use it, the bits are those of ``no_grad``.

    If this fails, a tensor of inference mode is written into, or its version is asked for.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    with torch.inference_mode():
        found = stage.run().latents
    expect_same(found.clone(), fresh(subject, model).latents, "a run in inference mode")
    expect_same(
        stage.run(seed=1).latents, fresh(subject, model, seed=1).latents, "a run without it after one"
    )


@check("hosts", on=BARE, needs=["bare_transformers"])
def a_bare_transformer_can_be_enabled(subject: Subject, model: str) -> None:
    """Without a pipeline, on a transformer that a host calls itself, blocks are skipped too, and given back.

    If this fails, count the steps from the transformer's timestep argument: there is no scheduler to ask.
    """
    bare, backend = Bare(model), subject.eagerly()
    run = inputs(model)
    expected = bare.run({"cond": run})["cond"]
    backend.enable(bare.model)
    with counted({"transformer": bare.model}) as counter:
        bare.run({"cond": run}, backend)
    full = max(len(call.blocks) for call in counter.calls)
    expect(counter.blocks < full * STEPS, "nothing was skipped on a bare transformer")
    backend.disable(bare.model)
    for step, (found, plainly) in enumerate(zip(bare.run({"cond": run})["cond"], expected, strict=True)):
        expect_same(found, plainly, f"step {step} after disable")


@check("hosts")
def an_installed_backend_is_found_by_its_name(subject: Subject) -> None:
    """An installed backend is found by its name, with ``-`` and in any case, and is then this class.

    If this fails, the entry point's name and the class's ``name`` differ. A class that is not installed passes.
    """
    from dit_cache_backends import list_cache_backends

    name = subject.cls.name
    info = list_cache_backends().get(name)
    if info is None:
        return
    expect(info.cls is subject.cls, f"the entry point {name!r} is {info.cls}, not {subject.cls}")
    spellings: list[Callable[[str], str]] = [str, str.upper, lambda text: text.replace("_", "-")]
    for spelling in spellings:
        made: Any = get_cache_backend(spelling(name), dict(subject.eager))
        expect(type(made) is subject.cls, f"{spelling(name)!r} gave {type(made).__name__}")


@check("hosts", on=PIPELINES)
def a_pipeline_keeps_what_a_host_looks_at(subject: Subject, model: str) -> None:
    """An enabled model is still an instance of its class, of that name, with the same weights and configuration.

    If this fails, the transformer was put into a wrapper: hosts ask ``isinstance``, ``state_dict`` and ``config``.
    """
    stage, backend = Stage(model), subject.eagerly()
    looks = {
        name: (type(each), type(each).__name__, list(each.state_dict()), dict(getattr(each, "config", {})))
        for name, each in stage.transformers.items()
    }
    backend.enable(stage.pipe)
    stage.run()
    for name, each in stage.transformers.items():
        cls, title, keys, config = looks[name]
        expect(isinstance(each, cls), f"{name} is no {cls.__name__} any more")
        expect(type(each).__name__ == title, f"the class of {name} is called {type(each).__name__}")
        expect(list(each.state_dict()) == keys, f"the state_dict of {name} has other keys")
        expect(dict(getattr(each, "config", {})) == config, f"the config of {name} changed")
    expect(plain(model).blocks, "the plain model ran no block")
