"""Drawing with a model under several settings, to measure what each costs and changes.

``compare``, ``calibrate``, ``plan`` and ``tune`` are made of such drawings.
"""

from dit_cache_backends.trials.prompts import Prompt, prompts_fingerprint, read_prompts
from dit_cache_backends.trials.provenance import Provenance, provenance
from dit_cache_backends.trials.setting import DENSE, Setting
from dit_cache_backends.trials.trial import Drawing, Trial

__all__ = [
    "DENSE",
    "Drawing",
    "Prompt",
    "Provenance",
    "Setting",
    "Trial",
    "prompts_fingerprint",
    "provenance",
    "read_prompts",
]
