"""The entry point of the group ``vllm_omni.general_plugins``, which vLLM-Omni calls in each of its processes."""

from __future__ import annotations

import importlib.util
import logging
from importlib.metadata import PackageNotFoundError, version

__all__ = ["KNOWN", "register"]

KNOWN = "0.30"
"""The release this was written for and is tested with."""

log = logging.getLogger("vllm_omni.dit_cache_backends")  # below vLLM-Omni's own, which prints what it logs


def register() -> None:
    """Let vLLM-Omni have the backends of the group ``dit_cache_backends`` by their names.

    May be called any number of times, before or after vLLM-Omni's runner was imported. Nothing that fails here ends the
    process: vLLM-Omni then goes on without these backends, which a warning says.
    """
    if importlib.util.find_spec("vllm_omni") is None:
        return
    found = _version()
    if found != KNOWN and not found.startswith(f"{KNOWN}."):
        log.warning(
            "dit-cache-backends was written for vLLM-Omni %s, and this is %s. Its cache backends are offered all the "
            "same. Should one misbehave, install vllm-omni==%s.*, or name your plugins in VLLM_PLUGINS, without it.",
            KNOWN,
            found,
            KNOWN,
        )
    try:
        from dit_cache_backends.hosts.vllm_omni.selector import open_selector

        open_selector()
    except Exception as error:
        log.warning(
            "vLLM-Omni %s cannot be given the cache backends of dit-cache-backends (%s: %s). Its own work as before.",
            found,
            type(error).__name__,
            error,
        )


def _version() -> str:
    try:
        return version("vllm-omni")
    except PackageNotFoundError:
        return "of an unknown version"
