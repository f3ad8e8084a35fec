"""SGLang-Diffusion's names for cache settings, and what they are called here.

SGLang 0.5.23 has two sets: environment variables ``SGLANG_CACHE_DIT_*`` for a server, and the keys of a request's
``cache_dit_params``. Both are turned into options of a backend; nothing of SGLang is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit_cache_backends.config import layered
from dit_cache_backends.errors import ConfigError, near
from dit_cache_backends.parts import SECOND

__all__ = [
    "ENABLED",
    "PREFIX",
    "REQUEST_KEYS",
    "FromEnvironment",
    "from_environment",
    "from_request",
    "merged",
    "refuse_foreign",
]

PREFIX = "SGLANG_CACHE_DIT_"
ENABLED = f"{PREFIX}ENABLED"
"""SGLang's switch for requests that do not say themselves; no option of a backend."""
_SECOND = "SECONDARY_"

# sglang/multimodal_gen/runtime/utils/common.py, get_bool_env_var
_TRUE = ("1", "true", "yes", "y", "t", "on")
_FALSE = ("0", "false", "no", "n", "f", "off")


def _truth(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError("true or false")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _lengths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("whole numbers with commas between them, such as 6,1,1,1") from None


_Reader = Callable[[str], Any]

# Without SGLANG_CACHE_DIT_: the option it sets, and how its text is read (sglang/multimodal_gen/envs.py).
_KNOBS: dict[str, tuple[str, _Reader]] = {
    "FN": ("Fn_compute_blocks", _whole),
    "BN": ("Bn_compute_blocks", _whole),
    "WARMUP": ("max_warmup_steps", _whole),
    "RDT": ("residual_diff_threshold", _number),
    "MC": ("max_continuous_cached_steps", _whole),
    "TAYLORSEER": ("enable_taylorseer", _truth),
    "TS_ORDER": ("taylorseer_order", _whole),
    "DMD": ("enable_dmd", _truth),
    "DMD_HISTORY": ("dmd_history", _whole),
    "DMD_RANK": ("dmd_rank", _whole),
    "DMD_RIDGE": ("dmd_ridge", _number),
    "DMD_SVD_PRECISION": ("dmd_svd_precision", str),
}
_MASKS: dict[str, tuple[str, _Reader]] = {
    "SCM_PRESET": ("scm_steps_mask_policy", str),
    "SCM_COMPUTE_BINS": ("scm_compute_bins", _lengths),
    "SCM_CACHE_BINS": ("scm_cache_bins", _lengths),
    "SCM_POLICY": ("steps_computation_policy", str),
}
_REQUEST: dict[str, str] = {
    **{name: name for name, _ in _KNOBS.values()},
    "scm_preset": "scm_steps_mask_policy",
    "scm_compute_bins": "scm_compute_bins",
    "scm_cache_bins": "scm_cache_bins",
    "scm_policy": "steps_computation_policy",
}
REQUEST_KEYS = (*_REQUEST, "secondary")
"""The keys that SGLang itself allows in ``cache_dit_params``."""


@dataclass(frozen=True)
class FromEnvironment:
    """What the variables ``SGLANG_CACHE_DIT_*`` say."""

    options: dict[str, Any] = field(default_factory=dict)
    """Options of a backend: only those that a variable sets. ``secondary`` holds those of ``SECONDARY_`` variables."""
    sources: dict[str, str] = field(default_factory=dict)
    """The variable behind each option; those within ``secondary`` as ``secondary.NAME``."""
    enabled: bool | None = None
    """``SGLANG_CACHE_DIT_ENABLED``; None where it is not set."""


def from_environment(environ: Mapping[str, str]) -> FromEnvironment:
    """The options that ``SGLANG_CACHE_DIT_*`` variables give. A variable that is set to nothing counts as not set.

    As in SGLang bins come before a preset, and the ``SECONDARY_`` variables are for the second transformer, which
    otherwise has what the first has. What SGLang takes with a warning, or for false, is refused: bins that are no
    numbers or of which only one is given, and a switch that is neither true nor false.

    Raises:
        ConfigError: with every variable that is not known, or does not hold what it should.
    """
    options: dict[str, Any] = {}
    second: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    enabled: bool | None = None
    for variable in sorted(name for name in environ if name.startswith(PREFIX)):
        text = environ[variable].strip()
        if not text:
            continue
        name = variable.removeprefix(PREFIX)
        try:
            if variable == ENABLED:
                enabled = _truth(text)
            elif name.startswith(_SECOND) and name.removeprefix(_SECOND) in _KNOBS:
                option, read = _KNOBS[name.removeprefix(_SECOND)]
                second[option] = read(text)
                sources[f"secondary.{option}"] = variable
            elif name in _KNOBS or name in _MASKS:
                option, read = _KNOBS[name] if name in _KNOBS else _MASKS[name]
                options[option] = read(text)
                sources[option] = variable
            else:
                problems.append(f"there is no variable {variable}.{near(variable, _variables())}")
        except ValueError as error:
            problems.append(f"{variable}: expected {error}, got {environ[variable]!r}")
    bins = [f"{PREFIX}SCM_COMPUTE_BINS", f"{PREFIX}SCM_CACHE_BINS"]
    given = [variable for variable in bins if environ.get(variable, "").strip()]
    if len(given) == 1:
        problems.append(f"{given[0]} is set without {({*bins} - {*given}).pop()}; give both or neither")
    if problems:
        raise ConfigError("; ".join(problems), problems)
    if len(given) == 2:
        options.pop("scm_steps_mask_policy", None)
        sources.pop("scm_steps_mask_policy", None)
    if second:
        options["secondary"] = second
    return FromEnvironment(options, sources, enabled)


def from_request(params: object) -> dict[str, Any]:
    """The options that a request's ``cache_dit_params`` give. Keys that SGLang does not have stay as they are.

    Whether a backend knows them, and their values, are for its configuration to check.

    Raises:
        ConfigError: if it is no mapping, if ``secondary`` is none, or if ``secondary`` has a mask, which is that of
            both transformers in SGLang.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        # SGLang's own words, which its users know
        raise ConfigError(f"cache_dit_params must be a dict, got {type(params).__name__}: {params!r}.")
    options: dict[str, Any] = {_REQUEST.get(str(key), str(key)): value for key, value in params.items()}
    if options.get("scm_compute_bins") is not None and options.get("scm_cache_bins") is not None:
        options.pop("scm_steps_mask_policy", None)  # as in SGLang
    second = options.get("secondary")
    if second is None:
        options.pop("secondary", None)
        return options
    if not isinstance(second, Mapping):
        raise ConfigError(
            f"cache_dit_params['secondary'] must be a dict, got {type(second).__name__}: {second!r}."
        )
    masks = [key for key in second if key in _REQUEST and _REQUEST[key] not in dict(_KNOBS.values())]
    if masks:
        raise ConfigError(
            f"cache_dit_params: secondary has no {masks[0]!r}; a mask is for both transformers. Give it beside "
            "secondary."
        )
    options["secondary"] = dict(second)
    return options


def merged(config_class: type, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of options from several, the later over the earlier, by SGLang's rule for the second transformer.

    What a later layer says of the first transformer is also said of the second, and so replaces what an earlier one
    has in its ``secondary`` or in the overrides of ``transformer_2``.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        first, second, others = _parts_of(result)
        now_first, now_second, now_others = _parts_of(layer)
        said = layered(config_class, now_first)
        second = {key: value for key, value in layered(config_class, second, said).items() if key not in said}
        second = layered(config_class, second, now_second)
        result = layered(config_class, first, said)
        if second:
            result["secondary"] = second
        if others or now_others:
            result["overrides"] = {**others, **now_others}
    return result


def refuse_foreign(
    options: Iterable[str], known: Iterable[str], backend: str, sources: Mapping[str, str]
) -> None:
    """Refuse options that a backend does not have, by the name under which they were given.

    Args:
        options: the options, those of ``secondary`` as ``secondary.NAME``.
        known: the options of the backend, aliases included.
        backend: its name.
        sources: where each option was given, for the message; see :class:`FromEnvironment`.

    Raises:
        ConfigError: with each of them.
    """
    names = list(known)
    problems = []
    for option in options:
        name = option.removeprefix("secondary.")
        missing = (
            name if name not in names else "secondary" if name != option and "secondary" not in names else ""
        )
        if missing:
            where = f" ({sources[option]})" if option in sources else ""
            problems.append(f"{backend} has no option {missing!r}{where}.{near(missing, names)}")
    if problems:
        raise ConfigError(f"{' '.join(problems)} Options of {backend}: {', '.join(names)}.", problems)


def _parts_of(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options of everything, of the second transformer, and of other parts."""
    first = {key: value for key, value in options.items() if key not in ("secondary", "overrides")}
    others = dict(options.get("overrides") or {})
    overridden = others.pop(SECOND, None)
    if overridden is not None and options.get("secondary") is not None:
        raise ConfigError(f"'secondary' and the overrides of {SECOND!r} are the same; give one of them.")
    return first, dict(options.get("secondary") or overridden or {}), others


def _variables() -> list[str]:
    names = [*_KNOBS, *_MASKS, *(_SECOND + name for name in _KNOBS)]
    return [ENABLED, *(PREFIX + name for name in names)]
