"""What a denoising step costs with the engine attached, beside the plain model and the least a cached step can cost.

The groups hold one model each: read the ratios of the medians within a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from dit_cache_backends import enable_cache

SHAPES = {
    # Time goes into Python: 57 blocks of next to no arithmetic.
    "python-bound": {"layers": (19, 38), "heads": 2, "dim": 16, "tokens": (16, 4)},
    # Time goes into arithmetic, as in the demo model.
    "demo-like": {"layers": (4, 8), "heads": 4, "dim": 32, "tokens": (64, 16)},
}
WARM_UP = 10_000  # steps: every step is computed, and its residual stored


def _model(shape: dict[str, Any], layers: tuple[int, int]) -> FluxTransformer2DModel:
    dim = shape["dim"]
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers[0],
        num_single_layers=layers[1],
        attention_head_dim=dim,
        num_attention_heads=shape["heads"],
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(dim // 2, dim // 4, dim // 4),
    ).eval()


def _inputs(shape: dict[str, Any]) -> dict[str, torch.Tensor]:
    image, text = shape["tokens"]
    return {
        "hidden_states": torch.randn(1, image, 16),
        "encoder_hidden_states": torch.randn(1, text, 32),
        "pooled_projections": torch.randn(1, 32),
        "img_ids": torch.zeros(image, 3),
        "txt_ids": torch.zeros(text, 3),
        "timestep": torch.tensor([0.5]),
    }


def _stepper(
    model: FluxTransformer2DModel, inputs: dict[str, torch.Tensor], backend: Any
) -> Callable[[], object]:
    count = iter(range(10**9))

    def step() -> object:
        with backend.step(next(count), 10**9, "cond"):
            return model(**inputs)

    return step


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, benchmark: Any) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    benchmark.group = request.param
    return SHAPES[request.param]


@torch.no_grad()
def test_plain_step(shape: dict[str, Any], benchmark: Any) -> None:
    model, inputs = _model(shape, shape["layers"]), _inputs(shape)
    benchmark(lambda: model(**inputs))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("computed", {"max_warmup_steps": WARM_UP * 1000, "residual_diff_threshold": 0.9}),
        ("never skips", {"residual_diff_threshold": 0.0}),
        (
            "cached by difference",
            {"max_warmup_steps": 1, "residual_diff_threshold": 0.99, "max_continuous_cached_steps": -1},
        ),
        (
            "cached uncompared",
            {"max_warmup_steps": 1, "residual_diff_threshold": 1.0, "max_continuous_cached_steps": -1},
        ),
        (
            "cached, TaylorSeer 1",
            {
                "max_warmup_steps": 5,
                "residual_diff_threshold": 0.99,
                "max_continuous_cached_steps": -1,
                "enable_taylorseer": True,
            },
        ),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_step_with_cache_dit(
    shape: dict[str, Any], benchmark: Any, kind: str, config: dict[str, Any]
) -> None:
    model, inputs = _model(shape, shape["layers"]), _inputs(shape)
    with enable_cache(model, "cache_dit", **config) as backend:
        step = _stepper(model, inputs, backend)
        for _ in range(6):
            step()
        benchmark(step)
        assert (backend.summary().blocks_skipped > 0) == kind.startswith("cached")


@torch.no_grad()
def test_ideal_cached_step(shape: dict[str, Any], benchmark: Any) -> None:
    """A model of one block: embedding, the block, norm and projection. A cache that runs it cannot be faster."""
    model, inputs = _model(shape, (1, 0)), _inputs(shape)
    benchmark(lambda: model(**inputs))
