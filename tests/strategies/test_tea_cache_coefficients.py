"""The published sets as data, and which of them a model gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from dit_cache_backends import ConfigError, enable_cache, get_cache_backend
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED
from dit_cache_backends.strategies.tea_cache_models import USES, choose
from dit_cache_conformance.tiny import build, build_transformer

from ..engine.runs import inputs, kinds, run_told
from .tea_cache_table import PAGE, written

pytestmark = pytest.mark.usefixtures("as_in_a_run")

X = np.linspace(0.0, 0.5, 5001)


def value(name: str, x: Any) -> Any:
    return np.poly1d(PUBLISHED[name].values)(x)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("flux_dev", 0.180),
        ("stable_audio", 0.298),
        ("hidream_dev", 0.618),
        ("hidream_fast", 0.581),
        ("minimax_h3", 0.154),
    ],
)
def test_some_sets_are_above_a_threshold_everywhere(name: str, least: float) -> None:
    assert least <= value(name, X).min() < 1.2 * least


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("flux_kontext", 0.241, 0.5),
        ("mochi", 0.144, 0.5),
        ("cogvideox_5b", 0.0, 0.007),
        ("cogvideox_5b", 0.330, 0.5),
        ("latte", 0.237, 0.5),
        ("lumina_next", 0.279, 0.5),
        ("hidream_full", 0.068, 0.5),
        ("wan21_t2v_1_3b", 0.185, 0.310),
        ("wan21_t2v_14b", 0.0, 0.130),
        ("wan21_t2v_14b_ret", 0.082, 0.5),
        ("wan21_t2v_1_3b_ret", 0.102, 0.5),
        ("wan21_i2v_480p", 0.0, 0.057),
        ("wan21_i2v_720p", 0.0, 0.058),
        ("qwen_image", 0.426, 0.5),
    ],
)
def test_some_sets_are_negative_where_a_difference_may_lie(name: str, low: float, high: float) -> None:
    inside = np.linspace(low + 0.002, high - 0.002, 200)
    assert (value(name, inside) < 0).all()
    for edge, beyond in ((low, low - 0.002), (high, high + 0.002)):
        if 0.0 < edge < 0.5:
            assert value(name, beyond) > 0


def test_every_set_has_finite_numbers_and_says_where_they_come_from() -> None:
    for name, each in PUBLISHED.items():
        assert np.isfinite(each.values).all(), name
        assert len(each.values) == (6 if name == "wan22_ti2v_5b" else 5), name
        assert each.model
        assert each.source
        assert [threshold for threshold, _ in each.thresholds] == sorted(t for t, _ in each.thresholds), name
        assert (
            each.x_range is None
        )  # Nobody published one; a set that has one is to be checked against its source.
    assert len({each.values for each in PUBLISHED.values()}) == len(PUBLISHED)
    assert {use.name for use in USES} <= set(PUBLISHED)
    assert all(not use.donor or use.donor == PUBLISHED[use.name].model for use in USES)


class Config:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class Model(nn.Module):
    """Says what the configuration of a published model says, and nothing else is asked of it."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.config = Config(**values)


FLUX = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "in_channels": 64}
WAN_14B = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16, "image_dim": None}


COG_5B = {"num_layers": 42, "num_attention_heads": 48}
FLUX_CLASS, COG_CLASS, WAN_CLASS = (
    "FluxTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "WanTransformer3DModel",
)
Z_IMAGE, LUMINA2 = (
    ("ZImageTransformer2DModel", {"dim": 3840}),
    ("Lumina2Transformer2DModel", {"hidden_size": 2304}),
)
DEV, DISTILLED = FLUX | {"guidance_embeds": True}, FLUX | {"guidance_embeds": False}


@pytest.mark.parametrize(
    ("model", "met", "name", "donor"),
    [
        ((FLUX_CLASS, DEV), ("FluxPipeline", 1, "official"), "flux_dev", ""),
        ((FLUX_CLASS, DEV), ("FluxKontextPipeline", 1, "official"), "flux_kontext", ""),
        ((FLUX_CLASS, DISTILLED), ("", 1, "official"), "flux_dev", "FLUX.1-dev"),
        ((WAN_CLASS, WAN_14B), ("WanPipeline", 1, "sglang"), "wan21_t2v_14b", ""),
        ((WAN_CLASS, WAN_14B), ("WanPipeline", 2, "sglang"), "wan21_t2v_14b", "Wan2.1-T2V-14B"),
        (Z_IMAGE, ("ZImagePipeline", 1, "vllm_omni"), "qwen_image", "Qwen-Image"),
        (Z_IMAGE, ("ZImagePipeline", 1, "sglang"), "hunyuan_video", "HunyuanVideo"),
        (
            (COG_CLASS, COG_5B | {"patch_size_t": 2, "in_channels": 32}),
            ("", 1, "official"),
            "cogvideox15_5b_i2v",
            "",
        ),
        (
            (COG_CLASS, COG_5B | {"patch_size_t": None, "in_channels": 32}),
            ("", 1, "official"),
            "cogvideox_5b",
            "",
        ),
        (
            (COG_CLASS, {"num_layers": 30, "num_attention_heads": 30}),
            ("", 1, "official"),
            "cogvideox_2b",
            "",
        ),
        (LUMINA2, ("", 1, "comfyui"), "lumina2_comfyui", ""),
        (LUMINA2, ("", 1, "official"), "lumina2_v2", ""),
    ],
)
def test_a_published_model_is_told_by_its_class_and_configuration(
    model: tuple[str, dict[str, Any]], met: tuple[str, int, str], name: str, donor: str
) -> None:
    transformer, config = model
    use = choose(transformer, Model(**config), *met)
    assert (use.name, use.donor) == (name, donor)


@pytest.mark.parametrize(
    ("transformer", "config", "names"),
    [
        (
            "WanTransformer3DModel",
            {"num_layers": 40, "num_attention_heads": 40, "in_channels": 36, "image_dim": 1280},
            ["wan21_i2v_480p", "wan21_i2v_720p"],
        ),
        (
            "HiDreamImageTransformer2DModel",
            {"num_layers": 16, "num_single_layers": 32},
            ["hidream_full", "hidream_dev", "hidream_fast"],
        ),
    ],
)
def test_models_that_the_configuration_does_not_tell_apart_have_to_be_named(
    transformer: str, config: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(ConfigError, match="does not tell which") as caught:
        choose(transformer, Model(**config), "", 1, "official")
    assert all(name in str(caught.value) for name in names)


def test_a_model_without_coefficients_is_refused_with_the_ways_out_and_left_as_it_was() -> None:
    for name, told in (("flux", "num_layers 4"), ("sd3", "no coefficients were published for SD3")):
        tiny = build(name)
        cls = type(tiny.pipe.transformer)
        with pytest.raises(ConfigError, match=told) as caught:
            enable_cache(tiny.pipe, "tea_cache")
        for way in ("coefficients: [c4", "coefficients: identity", "docs/tea_cache.md"):
            assert way in str(caught.value)
        assert type(tiny.pipe.transformer) is cls
    tiny = build("wan22")
    with pytest.raises(ConfigError, match="no published set"):
        enable_cache(tiny.pipe, "tea_cache", overrides={"transformer": {"coefficients": "identity"}})


def test_a_set_of_another_model_is_taken_when_named_and_said_in_the_summary() -> None:
    for name, named, copied in (
        ("flux", "flux_dev", 0),
        ("flux", "Mochi", 1),
        ("sd3", "flux-dev", 1),
        ("flux", [0.5, 0.1], 0),
        ("flux", "identity", 0),
    ):
        model = build_transformer(name)
        backend: Any = enable_cache(model, "tea_cache", coefficients=named)
        run_told(backend, model, inputs(name, 3))
        assert kinds(backend).get("coefficients_copied", 0) == copied, (name, named)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coefficients": "flux_dv"}, ["no published set 'flux_dv'", "Did you mean 'flux_dev'"]),
        ({"coefficients": []}, ["at least one finite number"]),
        ({"coefficients": [float("inf"), 1.0]}, ["at least one finite number"]),
        ({"coefficients_range": [0.3, 0.1]}, ["coefficients_range", "lowest, highest"]),
        ({"coefficients_range": [0.3]}, ["coefficients_range"]),
        ({"start_step": 1.5}, ["start_step", "at most 1.0"]),
        ({"end_step": -0.1}, ["end_step", "between 0.0 and 1.0"]),
        ({"rule": "offical"}, ["rule", "Did you mean 'official'"]),
        ({"rel_l1_tresh": 0.2}, ["rel_l1_tresh", "Did you mean 'rel_l1_thresh'"]),
        ({"calibrator": "foca", "enable_dmd": True}, ["different calibrators"]),
        ({"coefficients": [], "end_step": 7.5}, ["2 problems"]),
    ],
)
def test_a_wrong_option_is_told_with_what_was_expected(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        get_cache_backend("tea_cache", options)
    assert all(word in str(caught.value) for word in words)


def test_thresholds_that_are_not_given_are_the_published_ones_or_that_of_vllm_omni() -> None:
    model = build_transformer("flux")
    run = inputs("flux", 6)
    found = {}
    cases = (
        ("vllm_omni", None),
        ("vllm_omni", 0.2),
        ("official", None),
        ("official", 0.03),
        ("official", 0.2),
    )
    for rule, given in cases:
        backend: Any = enable_cache(
            model, "tea_cache", coefficients="ltx_video", rule=rule, rel_l1_thresh=given
        )
        run_told(backend, model, run)
        found[rule, given] = (backend.summary().cached_steps(), backend.summary().diffs())
        backend.disable()
    assert found["vllm_omni", None] == found["vllm_omni", 0.2]
    assert found["official", None] == found["official", 0.03]
    assert found["official", None][0] != found["official", 0.2][0]


def test_the_page_has_the_tables_that_the_data_make() -> None:
    """After a change to the data: python -m tests.strategies.tea_cache_table."""
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page
    assert all(f"| `{name}` |" in page for name in PUBLISHED)
