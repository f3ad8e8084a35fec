"""A model to look at, made from a folder's ``config.json`` or from a class; its weights are random, and it is small."""

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_cache_backends.config import load_config
from dit_cache_backends.errors import CardError, ConfigError, near

LARGE = 150_000_000
"""Parameters from which on a model is made smaller, or without numbers: 0.6 GB in float32."""
DEPTH = re.compile(r"(^|_)(num_)?(\w+_)?(layers|blocks)$|^depth$")
FEW, HEADS = 4, 2


@dataclass(frozen=True, slots=True)
class Source:
    """A class and how its instances are made."""

    cls: type[nn.Module]
    config: Mapping[str, Any]
    name: str
    """Of the component, where it is one of a pipeline."""


def find_models(target: str, config: str | None = None) -> list[Source]:
    """The models that ``target`` names.

    Args:
        target: a folder with ``config.json`` (a model of diffusers) or ``model_index.json`` (a pipeline); the name of a
            class of diffusers; or the dotted path of a class.
        config: what a class is made with, as JSON or a path to it; over what is in the folder.

    Raises:
        ConfigError: if there is no such folder or class, or no model in the folder.
    """
    given = load_config(config) if config else {}
    path = Path(target)
    if path.is_dir():
        found = list(_in_folder(path, given))
        if not found:
            raise ConfigError(
                f"{target} has no model of diffusers: expected a config.json with a _class_name, or a model_index.json "
                "that names a transformer."
            )
        return found
    return [Source(_class(target), given, "")]


def _in_folder(path: Path, given: Mapping[str, Any]) -> Iterator[Source]:
    index = path / "model_index.json"
    if not index.is_file():
        yield from _in_model_folder(path, given, "")
        return
    for name, kind in _read(index).items():
        if name.startswith("transformer") or (isinstance(kind, list) and "Transformer" in str(kind[-1])):
            yield from _in_model_folder(path / name, given, name)


def _in_model_folder(path: Path, given: Mapping[str, Any], name: str) -> Iterator[Source]:
    if (path / "config.json").is_file():
        config = _read(path / "config.json")
        if "_class_name" in config:
            yield Source(_class(config["_class_name"]), {**config, **given}, name)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no JSON object but {type(found).__name__}")
    return found


def _class(name: str) -> type[nn.Module]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "diffusers"), attribute)
    except (ImportError, AttributeError) as error:
        import diffusers

        hint = "" if module else near(name, (n for n in dir(diffusers) if "Model" in n or "Transformer" in n))
        raise ConfigError(
            f"there is no class {name}: {error}.{hint} Expected a folder, the name of a class of diffusers, or the "
            "dotted path of a class (package.module.Class)."
        ) from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"{name} is {found!r}, and no class of torch modules")
    return found


def build_small(source: Source) -> Iterator[tuple[nn.Module, str]]:
    """Ways to make an instance, the preferred one first, each with a word on what was changed.

    As it is, if that is small; else with few blocks and heads; with few blocks; as it is on the meta device, which has
    shapes and no numbers. What cannot be made is left out.

    Raises:
        CardError: if no instance can be made at all.
    """
    options = _options(source)
    few = {name: _few(value) if DEPTH.search(name) else value for name, value in options.items()}
    narrow = _narrow(few)
    ways = [(options, "as it is"), (narrow, "with few blocks and heads"), (few, "with few blocks")]
    failures: list[Exception] = []
    made = 0
    for number, (changed, words) in enumerate(ways):
        if any(changed == earlier for earlier, _ in ways[:number]):
            continue
        model = _made(source.cls, changed, failures)
        if model is not None:
            made += 1
            yield model, words
    model = _made(source.cls, options, failures, meta=True)
    if model is not None:
        made += 1
        yield model, "as it is, on the meta device"
    if not made:
        why = f"{type(failures[0]).__name__}: {failures[0]}"
        raise CardError(f"no {source.cls.__name__} can be made: {why}. Give what it needs as --config.")


def _made(
    cls: type[nn.Module], options: Mapping[str, Any], failures: list[Exception], meta: bool = False
) -> nn.Module | None:
    try:
        with torch.device("meta"):
            model = cls(**options).eval().requires_grad_(False)
        if meta:
            return model
        large = sum(parameter.numel() for parameter in model.parameters()) > LARGE
        return None if large else fill(cls(**options))
    except Exception as error:  # whatever a class raises at a configuration that does not fit it
        failures.append(error)
        return None


def _options(source: Source) -> dict[str, Any]:
    """The class's own defaults, with the configuration over them."""
    parameters = inspect.signature(source.cls.__init__).parameters
    own = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    given = {name: value for name, value in source.config.items() if not name.startswith("_")}
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {**own, **{name: value for name, value in given.items() if anything or name in parameters}}


def _few(value: Any) -> Any:
    return min(value, FEW) if isinstance(value, int) and not isinstance(value, bool) else value


def _narrow(options: Mapping[str, Any]) -> dict[str, Any]:
    """With few heads, and what is as wide as all heads together made as narrow."""
    heads, head = options.get("num_attention_heads"), options.get("attention_head_dim")
    if not isinstance(heads, int) or not isinstance(head, int):
        return dict(options)
    width = {name: HEADS * head for name, value in options.items() if value == heads * head}
    return {**options, **width, "num_attention_heads": HEADS}


def fill(model: nn.Module, spread: float = 0.02) -> nn.Module:
    """Ready to be run: nothing is trained, and parameters that are zero are filled, so that every block counts."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_meta and not parameter.any():
                parameter.normal_(0.0, spread)
    return model.eval().requires_grad_(False)


def read_inputs(path: Path, like: nn.Module) -> dict[str, Any]:
    """The arguments of a forward from a file.

    A ``.pt`` file has the tensors themselves. A JSON or YAML file has, by name, a shape (``[1, 16, 64]``: random
    numbers of the model's dtype), ``{"shape": [...], "dtype": "int64"}`` (zeros, or ones of bool), or
    ``{"value": ...}``.

    Raises:
        ConfigError: if it has something else.
    """
    if path.suffix == ".pt":
        return dict(torch.load(path, weights_only=True))
    kept = next(like.parameters(), torch.empty(0))
    return {name: _input(name, what, kept) for name, what in load_config(str(path)).items()}


def _input(name: str, what: Any, kept: torch.Tensor) -> Any:
    if isinstance(what, list) and all(isinstance(size, int) for size in what):
        return torch.randn(*what, device=kept.device).to(kept.dtype)
    if isinstance(what, dict) and set(what) == {"value"}:
        value = what["value"]
        number = isinstance(value, float)
        return torch.full((1,), value, device=kept.device, dtype=kept.dtype) if number else value
    if isinstance(what, dict) and {"shape", "dtype"} == set(what):
        dtype = getattr(torch, str(what["dtype"]), None)
        if isinstance(dtype, torch.dtype):
            fill = torch.ones if dtype is torch.bool else torch.zeros
            return fill(*what["shape"], dtype=dtype, device=kept.device)
    raise ConfigError(
        f'{name}: {what!r} is no input. Expected a shape, [1, 16, 64]; {{"shape": [1, 8], "dtype": "bool"}}; or '
        '{"value": 24}.'
    )
