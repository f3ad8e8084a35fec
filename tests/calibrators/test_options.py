"""Which options give which predictor, and which contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from dit_cache_backends import (
    DMD,
    CalibratorOptions,
    Chebyshev,
    ConfigError,
    FoCa,
    Hermite,
    Newton,
    Predictor,
    Reuse,
    Stream,
    TaylorSeer,
    get_cache_backend,
    make_calibrator,
)
from dit_cache_backends.config import make_config

IMAGE, TEXT = Stream("hidden_states", True), Stream("encoder_hidden_states", False)


def made(stream: Stream = IMAGE, **options: Any) -> Predictor:
    """By way of the backend, so that aliases and ranges are seen to."""
    backend: Any = get_cache_backend("cache_dit", options)
    predictor = backend.predictor(stream)
    assert isinstance(predictor, Predictor)
    return predictor


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Reuse),
        ({"calibrator": "none"}, Reuse),
        ({"calibrator": "taylorseer"}, TaylorSeer),
        ({"calibrator": "foca"}, FoCa),
        ({"calibrator": "dmd"}, DMD),
        ({"calibrator": "hermite"}, Hermite),
        ({"calibrator": "chebyshev"}, Chebyshev),
        ({"calibrator": "newton"}, Newton),
        ({"enable_taylorseer": True}, TaylorSeer),
        ({"enable_foca": True}, FoCa),
        ({"enable_dmd": True}, DMD),
        ({"enable_dmd": True, "calibrator": "dmd"}, DMD),
        ({"enable_taylorseer": False, "calibrator": "foca"}, FoCa),
    ],
    ids=str,
)
def test_a_calibrator_is_chosen_by_its_name_or_its_switch(options: Any, expected: type) -> None:
    assert type(made(**options)) is expected
    assert type(made(TEXT, **options)) is expected


@pytest.mark.parametrize("kind", ["taylorseer", "hermite", "newton"])
def test_order_0_is_plain_reuse(kind: str) -> None:
    assert type(made(calibrator=kind, **{f"{kind}_order": 0})) is Reuse


def test_every_option_reaches_its_predictor() -> None:
    seer: Any = made(calibrator="taylorseer", taylorseer_order=7)
    assert (seer.order, seer.of) == (7, "residual")
    hermite: Any = made(calibrator="hermite", hermite_order=3, hermite_scale=0.7)
    assert (hermite.order, hermite.scale) == (3, 0.7)
    newton: Any = made(calibrator="newton", newton_order=2, newton_start=0)
    assert (newton.order, newton.start) == (2, 0)
    chebyshev: Any = made(
        calibrator="chebyshev", chebyshev_degree=3, chebyshev_ridge=0.5, chebyshev_anchored=False
    )
    assert (chebyshev.degree, chebyshev.ridge, chebyshev.anchored) == (3, 0.5, False)
    dmd: Any = made(calibrator="dmd", dmd_history=9, dmd_rank=2, dmd_ridge=0.1, dmd_svd_precision="high")
    assert (dmd.rank, dmd.ridge, dmd.precision) == (2, 0.1, "high")
    for predictor, length in ((dmd, 9), (newton, 3), (made(calibrator="chebyshev", chebyshev_window=5), 5)):
        assert predictor._values.maxlen == length


@pytest.mark.parametrize("kind", ["taylorseer", "foca", "dmd", "hermite", "chebyshev", "newton"])
@pytest.mark.parametrize("key", ["taylorseer_cache_type", "calibrator_cache_type"])
def test_each_can_foretell_what_comes_out_instead_of_what_is_added(kind: str, key: str) -> None:
    assert made(calibrator=kind, **{key: "hidden_states"}).of == "output"
    assert made(calibrator=kind).of == "residual"


@pytest.mark.parametrize(
    ("options", "image", "text"),
    [
        ({"calibrator": "dmd", "enable_encoder_calibrator": False}, DMD, Reuse),
        ({"calibrator": "dmd", "enable_encoder_calibrator": True}, DMD, DMD),
        ({"enable_dmd": True, "enable_encoder_dmd": False}, DMD, Reuse),
        ({"enable_foca": True, "enable_encoder_foca": False}, FoCa, Reuse),
        ({"enable_taylorseer": True, "enable_encoder_taylorseer": False}, TaylorSeer, Reuse),
        ({"enable_taylorseer": True, "enable_encoder_calibrator": False}, TaylorSeer, Reuse),
        ({"enable_encoder_taylorseer": True}, Reuse, TaylorSeer),
        # As cache-dit's own configuration files write out what they leave off.
        ({"enable_dmd": True, "enable_encoder_taylorseer": False}, DMD, DMD),
    ],
    ids=str,
)
def test_the_other_streams_follow_unless_told_otherwise(options: Any, image: type, text: type) -> None:
    assert type(made(**options)) is image
    assert type(made(TEXT, **options)) is text


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"enable_taylorseer": True, "enable_dmd": True}, ("enable_taylorseer", "enable_dmd")),
        ({"enable_foca": True, "enable_dmd": True}, ("enable_foca", "enable_dmd")),
        ({"calibrator": "hermite", "enable_foca": True}, ("calibrator: hermite", "enable_foca")),
        ({"calibrator": "none", "enable_taylorseer": True}, ("calibrator: none", "enable_taylorseer")),
        (
            {"calibrator": "dmd", "enable_encoder_taylorseer": True},
            ("calibrator: dmd", "enable_encoder_taylorseer"),
        ),
        (
            {
                "enable_taylorseer": True,
                "enable_encoder_taylorseer": True,
                "enable_encoder_calibrator": False,
            },
            ("enable_encoder_calibrator", "enable_encoder_taylorseer"),
        ),
    ],
    ids=str,
)
def test_two_calibrators_are_refused_by_both_their_names(options: Any, names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        get_cache_backend("cache_dit", options)
    assert len(caught.value.problems) == 1
    assert all(name in str(caught.value) for name in names)
    with pytest.raises(ConfigError) as caught:
        make_config(CalibratorOptions, options, "a plugin")
    assert all(name in str(caught.value) for name in names)


def test_a_calibrator_for_the_text_alone_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="enable_encoder_calibrator: true has no calibrator"):
        get_cache_backend("cache_dit", {"enable_encoder_calibrator": True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrator": "taylor"}, "Did you mean 'taylorseer'"),
        (
            {"calibrator": "taylorsee"},
            "'none', 'taylorseer', 'foca', 'dmd', 'hermite', 'chebyshev', 'newton'",
        ),
        ({"dmd_history": 3}, "at least 4"),
        ({"dmd_svd_precision": "highest"}, "'low', 'medium', 'high'"),
        ({"hermite_scale": 0.0}, "above 0"),
        ({"chebyshev_ridge": 0.0}, "above 0"),
        ({"chebyshev_window": 0}, "at least 1"),
        ({"newton_order": 11}, "at most 10"),
        ({"enable_focca": True}, "Did you mean 'enable_foca'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_cache_backend("cache_dit", options)


def test_a_config_of_another_strategy_inherits_the_options_and_their_check() -> None:
    options = make_config(CalibratorOptions, {"enable_encoder_foca": False, "enable_foca": True}, "a plugin")
    assert type(make_calibrator(options, IMAGE)) is FoCa
    assert type(make_calibrator(options, TEXT)) is Reuse


def test_each_stream_gets_a_predictor_of_its_own() -> None:
    backend: Any = get_cache_backend("cache_dit", {"calibrator": "dmd"})
    assert backend.predictor(IMAGE) is not backend.predictor(IMAGE)
