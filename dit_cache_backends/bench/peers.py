"""The libraries beside which this one is measured: which are installed, and how our options are said to cache-dit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def installed(distribution: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def import_cache_dit() -> Any:
    """The library, told to leave the terminal alone."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import cache_dit

    logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
    return cache_dit


_ELSEWHERE = {
    "steps_computation_mask",
    "steps_computation_policy",
    "num_inference_steps",
    "enable_separate_cfg",
}
"""Of the options that cache-dit names as we do, those that are said to it in another way, or not at all."""


def cache_dit_arguments(backend: str, options: Mapping[str, Any], steps: int | None = None) -> dict[str, Any]:
    """Arguments of ``cache_dit.enable_cache`` that mean what ``options`` mean to our ``backend``.

    ``steps`` are those of the run, where the options name a mask or a preset for so many.

    Raises:
        KeyError: the library has no such backend, or nothing like one of the options.
    """
    from dit_cache_backends.config import make_config
    from dit_cache_backends.registry import find_backend

    cache_dit = import_cache_dit()
    make = {"cache_dit": cache_dit.DBCacheConfig, "dbprune": cache_dit.DBPruneConfig}[backend]
    cls: Any = find_backend(backend).cls
    given = dict(options)
    preset = given.pop("preset", None)
    if preset is not None:
        given = {**cls.preset(preset, steps), **given}
    config = make_config(cls.Config, given, backend)
    shared = {each.name for each in fields(make)} & {each.name for each in fields(config)}
    arguments = {name: getattr(config, name) for name in shared - _ELSEWHERE}
    mask = None if config.explicit_mask is None else list(config.explicit_mask)
    if config.policy is not None:
        mask = cache_dit.steps_mask(total_steps=steps, mask_policy=config.policy)
    if mask is not None:
        arguments["steps_computation_mask"] = mask
        arguments["steps_computation_policy"] = "static" if config.static else "dynamic"
    calibrator = _calibrator(cache_dit, config)
    return {
        "cache_config": make(**arguments),
        **({} if calibrator is None else {"calibrator_config": calibrator}),
    }


def _calibrator(cache_dit: Any, config: Any) -> Any:
    name = config.calibrator_of(main=True)
    if name == "none":
        return None
    make, own = {
        "taylorseer": (cache_dit.TaylorSeerCalibratorConfig, ("taylorseer_order",)),
        "foca": (cache_dit.FoCaCalibratorConfig, ()),
        "dmd": (
            cache_dit.DMDCalibratorConfig,
            ("dmd_history", "dmd_rank", "dmd_ridge", "dmd_svd_precision"),
        ),
    }[name]
    return make(
        enable_calibrator=True,
        enable_encoder_calibrator=config.calibrator_of(main=False) == name,
        calibrator_cache_type=config.taylorseer_cache_type,
        **{each: getattr(config, each) for each in own},
    )
