"""What a configuration says beside the cache: parallelism, quantization, attention and compilation.

Names are those of cache-dit 1.5.3 (``parallelism_config``, ``quantize_config``, ``attention_backend``). Here they are
only read and checked; who runs the pipeline hands them to diffusers, torchao and torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from dit_cache_backends.config import check_options, option
from dit_cache_backends.configuration.schema_terms import (
    Schema,
    all_of,
    any_of,
    forgiving,
    never,
    option_is,
    refine,
)
from dit_cache_backends.errors import ConfigError

__all__ = ["SECTION_OPTIONS", "check_section"]

_SIZES = ("ulysses_size", "ring_size", "tp_size")


@dataclass(frozen=True)
class ParallelismOptions:
    """``parallelism_config``: how many processes share one request."""

    ulysses_size: int | str | None = option(
        None, minimum=1, aliases=("ulysses",), help="Processes that share the attention heads, or auto."
    )
    ring_size: int | str | None = option(
        None, minimum=1, aliases=("ring",), help="Processes that share the tokens in a ring, or auto."
    )
    tp_size: int | str | None = option(
        None, minimum=1, aliases=("tp",), help="Processes that share the weights, or auto."
    )
    backend: str | None = option(None, help="Whose parallelism: auto, native_diffuser or native_pytorch.")
    attention_backend: str | None = option(
        None, help="The same as attention_backend at the top of the configuration."
    )
    ulysses_anything: bool | None = option(None, help="Any number of tokens and heads.")
    ulysses_float8: bool | None = option(None, help="Send attention's inputs in eight bits.")
    ulysses_async: bool | None = option(None, help="Send while computing.")
    ring_rotate_method: str | None = option(
        None, choices=("p2p", "allgather"), help="How keys and values travel in the ring."
    )
    ring_convert_to_fp32: bool | None = option(None, help="Add up the ring's results in float32.")
    extra_parallel_modules: list[Any] | None = option(
        None, help="Further modules to share, such as text_encoder, vae."
    )
    extra_parallel_kwargs: dict[str, Any] | None = option(
        None, help="Further arguments for a model's own plan."
    )
    cp_plan: Any = option(None, help="The plan by which tokens are shared, instead of the model's own.")
    use_ray: bool | None = option(None, help="Ray starts the processes: not possible here, torchrun does.")

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of several options at once."""
        sizes = {name: (name, name.removesuffix("_size")) for name in _SIZES}
        automatic = {name: option_is(names, {"type": "string"}) for name, names in sizes.items()}
        size: Schema = any_of({"type": ["integer", "null"]}, forgiving(["auto"]))
        return [
            *(never(all_of(automatic[one], automatic[other])) for one, other in combinations(_SIZES, 2)),
            *(refine(spelling, size) for names in sizes.values() for spelling in names),
            refine("use_ray", {"enum": [False, None]}),
            refine("attention_backend", {"pattern": r"\S"}),
        ]

    def __post_init__(self) -> None:
        problems = []
        for name in _SIZES:
            size = getattr(self, name)
            if isinstance(size, str) and size.strip().lower() != "auto":
                problems.append(f"{name}: expected a whole number, at least 1, or auto; got {size!r}")
        automatic = [name for name in _SIZES if isinstance(getattr(self, name), str)]
        if len(automatic) > 1:
            problems.append(f"{' and '.join(automatic)}: only one of them can be auto")
        if self.use_ray:
            problems.append("use_ray: true: processes are started by torchrun here, not by Ray; leave it out")
        if problems:
            raise ConfigError("; ".join(problems), problems)


@dataclass(frozen=True)
class QuantizeOptions:
    """``quantize_config``: which weights are kept in fewer bits."""

    backend: str | None = option(None, help="Who does it: auto or torchao.")
    quant_type: str | None = option(
        None, help="Such as float8_per_row, float8_weight_only, int8_per_row, int8_weight_only."
    )
    exclude_layers: list[str] | None = option(
        None, help="Layers with one of these in their name stay as they are."
    )
    regional_quantize: bool | None = option(None, help="Only the repeated blocks of the transformer.")
    repeated_blocks: list[str] | None = option(
        None, help="The classes of the repeated blocks, where the model does not tell."
    )
    components_to_quantize: list[str] | dict[str, Any] | None = option(
        None, help="Components of the pipeline, or for each of them its own quant_type; else the transformer."
    )
    per_tensor_fallback: bool | None = option(
        None, help="One scale for a whole tensor where a layer cannot have one a row."
    )
    precision_plan: dict[str, str] | None = option(
        None, help="Another quant_type for layers with this in their name."
    )
    filter_fn: Any = option(None, help="From Python only: which modules, called with module and name.")
    calibrate_fn: Any = option(None, help="From Python only: runs the model on calibration data.")
    serialize_to: str | None = option(None, help="Where to write the quantized model.")
    svdq_kwargs: dict[str, Any] | None = option(None, help="Options of SVDQuant.")
    verbose: bool | None = option(None, help="Tell what was done to each layer.")


@dataclass(frozen=True)
class CompileOptions:
    """``compile``: arguments of ``torch.compile``."""

    mode: str | None = option(None, help="Such as default, reduce-overhead, max-autotune.")
    fullgraph: bool | None = option(None, help="Refuse to break the graph.")
    dynamic: bool | None = option(None, help="Compile for shapes that change.")
    backend: str | None = option(None, help="Who compiles: inductor unless said.")
    options: dict[str, Any] | None = option(None, help="Options of that backend.")


SECTION_OPTIONS: dict[str, type] = {
    "parallelism_config": ParallelismOptions,
    "quantize_config": QuantizeOptions,
    "compile": CompileOptions,
}
"""The options of each section that has any; ``attention_backend`` is a name."""


def check_section(name: str, value: object) -> tuple[object, list[tuple[str, str]]]:
    """A section as it is held (null values left out), and each problem with the key it is at.

    ``attention_backend`` is held as text. ``compile: true`` is an empty mapping, and ``compile: false`` is None.
    """
    if name == "attention_backend":
        valid = isinstance(value, str) and value.strip() != ""
        return (value, []) if valid else (None, [("", f"{name}: expected the name of one, got {value!r}")])
    if name == "compile" and isinstance(value, bool):
        return ({} if value else None), []
    if not isinstance(value, Mapping):
        alternative = "true, false or " if name == "compile" else ""
        return None, [("", f"{name}: expected {alternative}a mapping, got {value!r}")]
    given = {key: item for key, item in value.items() if item is not None}
    options = SECTION_OPTIONS[name]
    values, problems = check_options(options, given)
    if not problems:
        try:
            options(**values)
        except ConfigError as error:
            problems = [(text.partition(":")[0], text) for text in error.problems]
    return values, [(key, f"{name}: {text}") for key, text in problems]
