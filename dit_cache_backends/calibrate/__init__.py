"""Dense runs measured once, and what strategies take from them: ratios, coefficients, rates, thresholds.

>>> trial = Trial("demo")
>>> found = fit(record(trial, read_prompts("prompts.txt"), "demo.jsonl"))
>>> found.write("demo.yaml")
"""

from dit_cache_backends.calibrate.calibration import (
    Calibration,
    Threshold,
    is_calibration,
    read_calibration,
    read_data,
)
from dit_cache_backends.calibrate.fit import fit
from dit_cache_backends.calibrate.record import Record, merge_records, read_record
from dit_cache_backends.calibrate.recording import record
from dit_cache_backends.calibrate.replay import ask, place_of, steps_of
from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.calibrate.simulate import Replays, Simulation, simulate, threshold_for
from dit_cache_backends.calibrate.step_fit import rate_between

__all__ = [
    "Calibration",
    "Record",
    "Replays",
    "Series",
    "Simulation",
    "Threshold",
    "ask",
    "fit",
    "is_calibration",
    "merge_records",
    "place_of",
    "rate_between",
    "read_calibration",
    "read_data",
    "read_record",
    "record",
    "simulate",
    "steps_of",
    "threshold_for",
]
