"""SGLang-Diffusion: an entry point of its group ``sglang.multimodal_gen.plugins``, silent unless it is asked for.

``DIT_CACHE_BACKEND=NAME`` has its cache integration served by that backend of ours; ``docs/sglang.md`` tells more.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["register"]

_TARGET = "sglang.multimodal_gen.runtime.cache.cache_dit_integration"


def register(environ: Mapping[str, str] | None = None) -> None:
    """Register the hooks, if ``DIT_CACHE_BACKEND`` names a backend. SGLang calls it in each of its processes.

    SGLang logs the exceptions of a plugin and goes on with its own cache, so what is wrong ends the process.

    Raises:
        SystemExit: if the settings are wrong, or SGLang has not the functions that are to be replaced.
    """
    environ = os.environ if environ is None else environ
    if environ.get("DIT_CACHE_BACKEND", "").strip().lower() in ("", "none"):
        return
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry, HookType

    from dit_cache_backends.errors import DitCacheError
    from dit_cache_backends.hosts.sglang.hooks import Hooks
    from dit_cache_backends.hosts.sglang.settings import find_settings

    try:
        settings = find_settings(environ)
        if settings is None:
            return
        hooks = Hooks(settings).by_name()
        _require(hooks)
    except DitCacheError as error:
        raise SystemExit(f"dit-cache-backends: {error}") from error
    for name, hook in hooks.items():
        HookRegistry.register(f"{_TARGET}.{name}", hook, HookType.AROUND)


def _require(names: Mapping[str, Any]) -> None:
    """Refuse a release of SGLang without these functions: a hook that cannot be applied is only logged there.

    Read, not imported: that would pull in the whole run time before SGLang is ready for it.
    """
    import sglang

    from dit_cache_backends.errors import DitCacheError

    path = Path(str(sglang.__file__)).parent.joinpath(*_TARGET.split(".")[1:]).with_suffix(".py")
    there: set[str] = set()
    if path.is_file():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in names if name not in there]
    if missing:
        raise DitCacheError(
            f"this SGLang has no {', '.join(missing)} in {_TARGET}, by which DIT_CACHE_BACKEND is served. SGLang "
            "0.5.23 has. Install it, or take DIT_CACHE_BACKEND out of the environment."
        )
