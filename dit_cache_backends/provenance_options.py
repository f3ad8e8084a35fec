"""Files of ``dit-cache calibrate`` as values of options, and the option that lets those of other models through."""

from __future__ import annotations

from dataclasses import dataclass

from dit_cache_backends.config import option
from dit_cache_backends.configuration.schema_terms import Schema

CALIBRATION_FILE: Schema = {"type": "string", "pattern": r"\.([yY][aA]?[mM][lL]|[jJ][sS][oO][nN])\s*$"}
"""A text that names a file."""


def is_calibration_file(value: object) -> bool:
    """Whether an option's value names a file and not a set."""
    return isinstance(value, str) and value.strip().lower().endswith((".yaml", ".yml", ".json"))


@dataclass(frozen=True)
class ProvenanceOptions:
    """Whether what comes from a file has to be measured on the model at hand. A ``Config`` inherits this option."""

    provenance: str = option(
        "check",
        choices=("check", "ignore"),
        help="A file that was measured on another model, with other weights or with another scheduler is refused; "
        "ignore takes it all the same.",
    )
