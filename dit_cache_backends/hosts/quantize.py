"""Weights in fewer bits, by torchao's own ``quantize_``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dit_cache_backends.errors import PlacementError, near
from dit_cache_backends.models import find_card, uncompiled

__all__ = ["Quantization"]

_TYPES: dict[str, tuple[str, str | None]] = {
    "float8_per_row": ("Float8DynamicActivationFloat8WeightConfig", "PerRow"),
    "float8_per_tensor": ("Float8DynamicActivationFloat8WeightConfig", "PerTensor"),
    "float8_weight_only": ("Float8WeightOnlyConfig", None),
    "int8_per_row": ("Int8DynamicActivationInt8WeightConfig", None),
    "int8_weight_only": ("Int8WeightOnlyConfig", None),
    "int4_weight_only": ("Int4WeightOnlyConfig", None),
}
"""cache-dit's names, with the torchao configuration and its granularity that each stands for."""

_LACKING = {
    "calibrate_fn": "torchao's types need no calibration data",
    "serialize_to": "save the pipeline with save_pretrained instead",
    "svdq_kwargs": "SVDQuant is none of torchao's types",
}


class Quantization:
    """What a ``quantize_config`` asks for, in canonical keys; nothing where it is empty.

    By default the linear layers of the repeated blocks of every transformer are quantized (``regional_quantize``).

    Raises:
        PlacementError: torchao is missing, or does not know the type, or this device cannot compute with it.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        self._config = dict(config)
        if not config:
            return
        for name, reason in _LACKING.items():
            if config.get(name):
                raise PlacementError(f"quantize_config: {name} is not to be had: {reason}. Leave it out.")
        backend = config.get("backend")
        if backend is not None and str(backend).lower() not in ("auto", "torchao"):
            raise PlacementError(f"quantize_config: backend {backend!r} is not to be had; torchao is.")
        for kind in self._kinds():
            _refuse(kind, device)

    def __bool__(self) -> bool:
        return bool(self._config)

    def apply(self, pipeline: Any, transformers: Mapping[str, nn.Module]) -> None:
        """Quantize the weights of ``pipeline``, in place. They stay so.

        Raises:
            PlacementError: A component is not there, or torchao refuses.
        """
        if not self._config:
            return
        for name, own in self._components(transformers).items():
            module = transformers.get(name) or getattr(pipeline, name, None)
            if not isinstance(module, nn.Module):
                raise PlacementError(
                    f"quantize_config: {type(pipeline).__name__} has no component {name!r} with weights."
                    f"{near(name, getattr(pipeline, 'components', {}))}"
                )
            self._apply(name, uncompiled(module), {**self._config, **own})

    def _apply(self, name: str, module: nn.Module, config: Mapping[str, Any]) -> None:
        from torchao.quantization import quantize_

        plan: Mapping[str, str] = config.get("precision_plan") or {}
        regions = _regions(module, config)
        excluded = config.get("exclude_layers") or ()
        own = config.get("filter_fn")

        def chosen(kind: str | None) -> Callable[[nn.Module, str], bool]:
            def choose(layer: nn.Module, path: str) -> bool:
                planned = next((plan[part] for part in plan if part in path), None)
                inside = planned is not None or any(path.startswith(f"{each}.") for each in regions)
                return (
                    isinstance(layer, nn.Linear)
                    and planned == kind
                    and (inside or not regions)
                    and not any(part in path for part in excluded)
                    and (own is None or bool(own(layer, path)))
                )

            return choose

        kinds: dict[str | None, str] = {None: config.get("quant_type") or "float8_per_row"}
        kinds |= {kind: kind for kind in plan.values()}
        try:
            for key, kind in kinds.items():
                quantize_(module, _torchao_config(kind), filter_fn=chosen(key))
        except (ImportError, AssertionError, RuntimeError, ValueError, NotImplementedError) as error:
            raise PlacementError(f"quantize_config: torchao cannot quantize {name}: {error}") from error

    def _components(self, transformers: Mapping[str, nn.Module]) -> dict[str, Mapping[str, Any]]:
        asked = self._config.get("components_to_quantize")
        if not asked:
            return {name: {} for name in transformers}
        if isinstance(asked, Mapping):
            return {
                name: {"quant_type": own} if isinstance(own, str) else dict(own or {})
                for name, own in asked.items()
            }
        return {name: {} for name in asked}

    def _kinds(self) -> list[str]:
        configs = [self._config, *self._components({}).values()]
        kinds = [config["quant_type"] for config in configs if config.get("quant_type")]
        kinds += [kind for config in configs for kind in (config.get("precision_plan") or {}).values()]
        return kinds or ["float8_per_row"]


def _refuse(kind: str, device: torch.device) -> None:
    if kind not in _TYPES:
        raise PlacementError(
            f"quantize_config: torchao has no quant_type {kind!r} here.{near(kind, _TYPES)} Known: {', '.join(_TYPES)}."
        )
    try:
        _torchao_config(kind)
    except ImportError as error:
        raise PlacementError(
            f"quantize_config: {kind} needs torchao, which cannot be imported ({error}). pip install torchao."
        ) from error
    if _TYPES[kind][0].startswith("Float8Dynamic") and device.type == "cpu":
        raise PlacementError(
            f"quantize_config: {kind} is not to be had on a CPU: torchao multiplies in float8 only on CUDA from"
            " compute capability 8.9 on, MI300 and XPU. Use float8_weight_only or int8_weight_only."
        )


def _torchao_config(kind: str) -> Any:
    from torchao import quantization

    name, granularity = _TYPES[kind]
    arguments = {} if granularity is None else {"granularity": getattr(quantization, granularity)()}
    return getattr(quantization, name)(**arguments)


def _regions(module: nn.Module, config: Mapping[str, Any]) -> list[str]:
    """The paths below which layers are quantized; none means everywhere."""
    if config.get("regional_quantize") is False:
        return []
    classes = config.get("repeated_blocks") or getattr(module, "_repeated_blocks", None) or ()
    if classes:
        return [path for path, each in module.named_modules() if type(each).__name__ in classes]
    card = find_card(type(module))
    if card is None:
        return []
    return [blocks.path for stack in card.stacks for blocks in stack.lists]
