"""The options that say where and in which dtype a strategy keeps what it remembers."""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import Schema, refine
from dit_cache_backends.engine.storage import DTYPES, Storage, device_pattern, device_problem, storage


@dataclass(frozen=True)
class StorageOptions:
    """Where what is remembered between steps is kept. The ``Config`` of a strategy inherits these options.

    Predictors follow them by themselves, gates by ``Place.storage``.
    """

    cache_device: str | None = option(
        None,
        problem=device_problem,
        help="Where what is remembered between steps is kept: cpu, to save the memory of the device that computes, or "
        "another one such as cuda:1. Null: where the model's streams are.",
    )
    cache_dtype: str | None = option(
        None,
        choices=tuple(DTYPES),
        help="In which type it is kept, to save memory; computed is in the streams' own. Null: in their own, too.",
    )

    @staticmethod
    def schema_rules() -> list[Schema]:
        """What the JSON schema says of a device's name."""
        return [refine("cache_device", {"anyOf": [{"type": "null"}, {"pattern": device_pattern()}]})]

    def storage(self) -> Storage:
        """What the two stand for.

        Raises:
            ConfigError: if torch does not know the device.
        """
        return storage(self.cache_device, self.cache_dtype)
