"""Whether a plan was found on the model and the scheduler at hand."""

from __future__ import annotations

from torch import nn

from dit_cache_backends import ConfigError
from dit_cache_backends.trials.provenance import Provenance, provenance, same_weights

WAY_OUT = "Find one for it with `dit-cache plan`, or run this one all the same with provenance: ignore."


def check_provenance(measured: object, pipeline: object, transformer: nn.Module, where: str) -> None:
    """Refuse a plan of another model or scheduler. Of a bare transformer nothing but itself can be compared.

    Args:
        measured: what the plan's file says of it.
        pipeline: what a backend is enabled on.
        transformer: of the pipeline, or the same.
        where: the plan's file.

    Raises:
        ConfigError: with what differs.
    """
    if measured is None:
        raise ConfigError(f"plan: {where} does not say on which model it was found. {WAY_OUT}")
    found, here = Provenance.from_dict(measured, f"plan: {where}"), provenance(pipeline)
    if pipeline is transformer:
        classes, weights = [*found.transformers.values()], [*found.weights.values()]
        (own,), (numbers,) = here.transformers.values(), here.weights.values()
        same = own in classes and any(same_weights(each, numbers) for each in weights)
        apart = (
            [] if same else [f"transformer: found on {', '.join(classes)}, here {own}, or its weights differ"]
        )
    else:
        apart = found.differences(here)
    if apart:
        raise ConfigError(f"plan: {where} was found on another model. {'; '.join(apart)}. {WAY_OUT}")
