"""Beside what else is done to a model: hooks, copies, gradients, adapters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends import AlreadyEnabledError
from dit_cache_conformance.check import check, expect, expect_same
from dit_cache_conformance.counting import block_lists, inside
from dit_cache_conformance.runs import alone, plain
from dit_cache_conformance.stage import BARE, PIPELINES, Bare, Stage, inputs
from dit_cache_conformance.subject import Subject


def _scale(module: nn.Module, args: Any, out: Any) -> Any:
    if isinstance(out, Tensor):
        return out * 1.1
    return tuple(_scale(module, args, each) for each in out)


@check("composition", on=PIPELINES)
def hooks_of_others_stay(subject: Subject, model: str) -> None:
    """Forward hooks of others on the blocks, put there before enable or after, work as they do without a cache.

    If this fails, a block's forward is replaced or called around its hooks: wrap the call, and call all of it.
    """
    found = []
    for enabled in ("", "before", "after"):
        stage, backend = Stage(model), subject.never_skipping()
        if enabled == "before":
            backend.enable(stage.pipe)
        hooks = [
            block.register_forward_hook(_scale)
            for transformer in stage.transformers.values()
            for blocks in block_lists(transformer).values()
            for block in blocks[:2]
        ]
        if enabled == "after":
            backend.enable(stage.pipe)
        found.append(stage.run().latents)
        for hook in hooks:
            hook.remove()
        backend.disable()
    expect_same(stage.run().latents, plain(model).latents, "after disable, and after the hooks were removed")
    for latents, order in zip(found[1:], ("before", "after"), strict=True):
        expect_same(latents, found[0], f"hooks on the blocks, the backend enabled {order} them")


@check("composition", on=PIPELINES)
def adapters_within_blocks_are_used(subject: Subject, model: str) -> None:
    """A layer that is exchanged inside a block while a backend is enabled (as LoRA does) is used from then on.

    If this fails, a block's forward, or its parts, are kept from the time of enable.
    """
    found = []
    for enabled in (False, True):
        stage = Stage(model)
        if enabled:
            subject.never_skipping().enable(stage.pipe)
        for transformer in stage.transformers.values():
            for blocks in block_lists(transformer).values():
                inner: Any = inside(blocks[-1])
                inner.to_q = nn.Sequential(inner.to_q, nn.Identity(), _Twice())
        found.append(stage.run().latents)
    expect_same(found[1], found[0], "with an adapter put in after enable")
    expect(
        not torch.equal(found[0], plain(model).latents), "the adapter changed nothing, so nothing was tried"
    )


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@check("composition", on=BARE, needs=["bare_transformers"])
def a_copy_of_an_enabled_model_is_plain(subject: Subject, model: str) -> None:
    """A deep copy, and a pickle, of an enabled model is the plain model; the original goes on as if alone.

    If this fails, what belongs to the backend stands in the model's dictionary and is copied along.
    """
    bare, backend = Bare(model), subject.eagerly()
    run = inputs(model)
    plainly = bare.run({"cond": run})["cond"]
    expected = alone(subject, model)
    backend.enable(bare.model)
    backend.refresh(bare.model, len(run))
    other = Bare(model)
    for step, arguments in enumerate(run):
        expect_same(bare.call(arguments), expected[step], f"step {step} of the original")
        if step in (2, 5):
            for made in (
                copy.deepcopy(bare.model),
                pickle.loads(pickle.dumps(bare.model)),
            ):
                other.model = made
                expect_same(other.call(arguments), plainly[step], f"a copy made in step {step}")
                expect_same(other.call(run[step - 1]), plainly[step - 1], f"a copy made in step {step}")


@check("composition", on=BARE, needs=["bare_transformers"])
def training_is_not_cached(subject: Subject, model: str) -> None:
    """With gradients enabled a call is the plain model's, forward and backward, and the cached run after it is usual.

    If this fails, leave the call alone where ``torch.is_grad_enabled()``: no gradient goes through a stored value.
    """
    run = inputs(model)
    found = []
    for enabled in (False, True):
        bare, backend = Bare(model), subject.eagerly()
        if enabled:
            backend.enable(bare.model)
            backend.refresh(bare.model, len(run))
        bare.model.requires_grad_(True)
        gradients = []
        for arguments in run[:3]:
            bare.model.zero_grad()
            with torch.enable_grad():
                out = bare.call(arguments)
                out.square().mean().backward()  # type: ignore[no-untyped-call]
            gradients.append(out.detach())
            gradients += [
                p.grad.clone() if p.grad is not None else torch.zeros(1) for p in bare.model.parameters()
            ]
        found.append(gradients)
        bare.model.requires_grad_(False)
    for plainly, cached in zip(*found, strict=True):
        expect_same(cached, plainly, "an output or a gradient")
    expected = alone(subject, model)
    for step, out in enumerate(bare.run({"cond": run}, backend)["cond"]):
        expect_same(out, expected[step], f"step {step} of a cached run after training")


@check("composition", on=("flux", "qwen_image"))
def the_cache_of_diffusers_is_not_doubled(subject: Subject, model: str) -> None:
    """Where diffusers' own cache is enabled on the model, enabling another is an AlreadyEnabledError.

    If this fails, two caches skip in one model, and the result is neither's.
    """
    from diffusers import FirstBlockCacheConfig

    stage, backend = Stage(model), subject.eagerly()
    stage.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    try:
        backend.enable(stage.pipe)
    except AlreadyEnabledError:
        return
    expect(False, "a second cache was enabled beside that of diffusers")


@check("composition", on=BARE, needs=["bare_transformers"])
def a_model_may_write_into_what_its_blocks_gave(subject: Subject, model: str) -> None:
    """Where a model writes into the tensor that its last block returned, nothing kept of the step is spoilt.

    If this fails, a residual or a reference shares its memory with a tensor that the model goes on with: copy it.
    """
    found = []
    for in_place in (False, True):
        bare, backend = Bare(model), subject.eagerly()
        children = dict(bare.model.named_children())
        behind = children.get("norm_final") or children["norm_out"]
        behind.register_forward_pre_hook(_double_in_place if in_place else _double)
        backend.enable(bare.model)
        found.append(bare.run({"cond": inputs(model)}, backend)["cond"])
    for step, (left, written) in enumerate(zip(*found, strict=True)):
        expect_same(written, left, f"step {step}, where the model writes into what its last block gave")


def _double(module: nn.Module, args: Any) -> Any:
    return (args[0] * 2, *args[1:])


def _double_in_place(module: nn.Module, args: Any) -> Any:
    args[0].mul_(2)
