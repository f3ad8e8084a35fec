"""What a stage of SGLang sets by itself: neither the environment nor the request asked for it, and no default says it.

MiniMax-H3 with ``quality="high"`` has its own numbers; Ideogram 4 has one set of numbers for both of its transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dit_cache_backends.configuration.sglang import FromEnvironment, from_request

__all__ = ["host_wishes"]

_NOT_KNOBS = ("enabled", "num_inference_steps", "steps_computation_mask", "steps_computation_policy")


def host_wishes(
    config: Any, environment: FromEnvironment, params: object, secondary: Any = None
) -> dict[str, Any]:
    """The options in SGLang's ``CacheDitConfig`` that are not what the user's settings make of it.

    Args:
        config: that of the first transformer.
        environment: what the variables say.
        params: the request's ``cache_dit_params``.
        secondary: that of the second transformer, if there is one.
    """
    request = from_request(params)
    of_request, of_environment = request.get("secondary") or {}, environment.options.get("secondary") or {}
    first = (request, environment.options)
    wishes = _differing(config, *first)
    if _asks_for_mask(*first) and not config.steps_computation_mask:
        wishes["scm_steps_mask_policy"] = "none"
    if secondary is not None:
        second = _differing(secondary, of_request, request, of_environment, environment.options)
        second |= {key: getattr(secondary, key) for key in wishes if hasattr(secondary, key)}
        second = {key: value for key, value in second.items() if key not in wishes or wishes[key] != value}
        if second:
            wishes["secondary"] = second
    return wishes


def _differing(config: Any, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``config`` that are not what the layers, the first before the others, and the defaults give."""
    found = {}
    for each in dataclasses.fields(config):
        if each.name in _NOT_KNOBS:
            continue
        expected = next((layer[each.name] for layer in layers if each.name in layer), each.default)
        value = getattr(config, each.name)
        if value != expected:
            found[each.name] = value
    return found


def _asks_for_mask(*layers: Mapping[str, Any]) -> bool:
    bins = any("scm_compute_bins" in layer for layer in layers)
    preset = next(
        (layer["scm_steps_mask_policy"] for layer in layers if "scm_steps_mask_policy" in layer), "none"
    )
    return bins or preset != "none"
