"""Which options of a calibrator contradict each other, in the terms of a JSON schema."""

from itertools import combinations

from dit_cache_backends.configuration.schema_terms import Schema, all_of, any_of, never, option_is, when

_SWITCHES = ("taylorseer", "foca", "dmd")
_WITHOUT = ("hermite", "chebyshev", "newton")
"""Calibrators that have no switch of their own."""
_ENCODER = ("enable_encoder_calibrator", "enable_encoder_foca", "enable_encoder_dmd")
_YES: Schema = {"const": True}
_NO: Schema = {"const": False}


def calibrator_rules() -> list[Schema]:
    """The rules of ``CalibratorOptions.calibrator_problems``."""
    switched = {kind: option_is(f"enable_{kind}", _YES) for kind in _SWITCHES}
    encoder_taylorseer = "enable_encoder_taylorseer"
    neither = any_of(
        option_is("calibrator", {"enum": ["foca", "dmd", *_WITHOUT]}), switched["foca"], switched["dmd"]
    )
    any_calibrator = option_is("calibrator", {"not": {"enum": [None, "none"]}})
    return [
        *(never(all_of(switched[one], switched[other])) for one, other in combinations(_SWITCHES, 2)),
        *(
            when(switched[kind], never(option_is("calibrator", {"not": {"enum": [None, kind]}})))
            for kind in _SWITCHES
        ),
        when(
            option_is(encoder_taylorseer, _YES),
            never(
                any_of(
                    option_is("calibrator", {"not": {"enum": [None, "taylorseer"]}}),
                    switched["foca"],
                    switched["dmd"],
                )
            ),
        ),
        when(
            option_is(_ENCODER, _YES),
            any_of(any_calibrator, *switched.values(), option_is(encoder_taylorseer, _YES)),
        ),
        *(
            never(all_of(option_is(_ENCODER, one), option_is(encoder_taylorseer, other), never(neither)))
            for one, other in ((_YES, _NO), (_NO, _YES))
        ),
    ]
