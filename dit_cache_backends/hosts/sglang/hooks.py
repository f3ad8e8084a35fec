"""What stands around the functions by which SGLang 0.5.23 mounts, refreshes and unmounts its own cache.

Each is called with the original first, as SGLang's AROUND hooks are, and never calls it: it is cache-dit's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dit_cache_backends.errors import DitCacheError, NotEnabledError
from dit_cache_backends.hosts.sglang.host_wishes import host_wishes
from dit_cache_backends.hosts.sglang.mount import Mount, mount, mounted
from dit_cache_backends.hosts.sglang.settings import Settings

__all__ = ["Hooks"]

_Original = Callable[..., Any]


class _Request(threading.local):
    """The request whose parameters were looked at last in this thread, until they are put to use."""

    params: Mapping[str, Any] | None = None

    def take(self) -> Mapping[str, Any]:
        params, self.params = self.params, None
        return params or {}


class Hooks:
    """The six functions, for one server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._request = _Request()

    def by_name(self) -> dict[str, Callable[..., Any]]:
        """Each by the name of the function of SGLang's that it stands around."""
        return {
            "resolve_cache_dit_request_overrides": self.resolve,
            "enable_cache_on_transformer": self.enable,
            "enable_cache_on_dual_transformer": self.enable_two,
            "refresh_context_on_transformer": self.refresh,
            "refresh_context_on_dual_transformer": self.refresh_two,
            "disable_cache_on_transformer": self.disable,
        }

    def resolve(self, original: _Original, raw: Any) -> dict[str, Any]:
        """Check a request's ``cache_dit_params``, which may have any option of the backend, and give a copy.

        Raises:
            ConfigError: if the backend has no such option or its value is wrong; then only that request fails.
        """
        self._settings.make(raw)
        params: dict[str, Any] = _copied(raw or {})
        self._request.params = params
        return dict(_copied(params))

    def enable(
        self,
        original: _Original,
        transformer: nn.Module,
        config: Any,
        model_name: str = "transformer",
        sp_group: Any = None,
        tp_group: Any = None,
        has_separate_cfg: bool = False,
        joint_cfg_decision: bool = False,
    ) -> nn.Module:
        """Mount a backend on one transformer; the branches and steps need no counting, so no setting for guidance."""
        params = self._request.take()
        if config.enabled:
            host = host_wishes(config, self._settings.environment, params)
            groups = _groups(sp_group, tp_group, joint_cfg_decision)
            self._mount(params, host, {"transformer": config}, transformer, None, groups)
        return transformer

    def enable_two(
        self,
        original: _Original,
        transformer: nn.Module,
        transformer_2: nn.Module,
        primary_config: Any,
        secondary_config: Any,
        model_name: str = "wan2.2",
        sp_group: Any = None,
        tp_group: Any = None,
        has_separate_cfg: bool = True,
    ) -> tuple[nn.Module, nn.Module]:
        """Mount one backend on two transformers, the second with options of its own."""
        params = self._request.take()
        if primary_config.enabled:
            host = host_wishes(primary_config, self._settings.environment, params, secondary_config)
            configs = {"transformer": primary_config, "transformer_2": secondary_config}
            self._mount(params, host, configs, transformer, transformer_2, _groups(sp_group, tp_group, False))
        return transformer, transformer_2

    def refresh(
        self, original: _Original, transformer: nn.Module, num_inference_steps: int, *args: Any, **kwargs: Any
    ) -> None:
        """Begin another run. Masks need not be given again: those of the options follow the number of steps."""
        self._request.take()
        present = _present(transformer)
        present.refresh(present.name_of(transformer), num_inference_steps)

    def refresh_two(
        self,
        original: _Original,
        transformer: nn.Module,
        transformer_2: nn.Module,
        num_high_noise_steps: int,
        num_low_noise_steps: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Begin another run of two transformers."""
        self._request.take()
        present = _present(transformer)
        present.refresh("transformer", num_high_noise_steps)
        present.refresh("transformer_2", num_low_noise_steps)

    def disable(self, original: _Original, transformer: nn.Module) -> nn.Module:
        """Take the backend off; of two transformers, off both. Harmless where nothing is mounted."""
        present = mounted(transformer)
        if present is not None:
            _say("unmounted", present)
            present.take_off()
        return transformer

    def _mount(
        self,
        params: Mapping[str, Any],
        host: Mapping[str, Any],
        configs: Mapping[str, Any],
        first: nn.Module,
        second: nn.Module | None,
        groups: tuple[Any, ...],
    ) -> None:
        from sglang.multimodal_gen.runtime.managers.forward_context import get_forward_context_or_none

        lacking = [name for name, config in configs.items() if config.num_inference_steps is None]
        if lacking:
            raise DitCacheError(
                f"SGLang did not say how many steps {lacking[0]} makes; none can be skipped then."
            )
        steps = {name: config.num_inference_steps for name, config in configs.items()}
        backend = self._settings.make(params, host)
        made = mount(backend, steps, first, second, groups, get_forward_context_or_none)
        _say("mounted", made)


def _present(transformer: nn.Module) -> Mount:
    found = mounted(transformer)
    if found is None:
        raise NotEnabledError(
            f"SGLang refreshes the cache of a {type(transformer).__name__}, on which none of this package is mounted."
        )
    return found


def _groups(sp_group: Any, tp_group: Any, joint: bool) -> tuple[Any, ...]:
    """The process groups whose ranks decide together. Ranks of a CFG group are on different branches, and do not."""
    if joint:
        from sglang.multimodal_gen.runtime.distributed import parallel_state

        if parallel_state.get_classifier_free_guidance_world_size() > 1:
            return (parallel_state.get_dit_group(),)
    return tuple(group for group in (sp_group, tp_group) if group is not None)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


def _say(what: str, of: Mount) -> None:
    """A line in SGLang's log; at the end what came of the last run."""
    from sglang.multimodal_gen.runtime.utils.logging_utils import init_logger

    logger = init_logger(__name__)
    for name, module in of.modules().items():
        logger.info("dit-cache: %s %s on %s (%s)", what, of.backend.name, name, type(module).__name__)
        if what == "unmounted":
            logger.info("dit-cache: the last run of %s: %s", name, of.summary(name))
