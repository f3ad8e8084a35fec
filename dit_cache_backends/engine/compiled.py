"""A call of a transformer that torch.compile compiles: as a whole where that can be, else block by block."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback, set_eval_frame

from dit_cache_backends.engine.attachment import Attachment
from dit_cache_backends.engine.compiled_call import NotesLost
from dit_cache_backends.engine.graphs import Blocks, Graphs, Region, Whole, hooked, obstacle
from dit_cache_backends.engine.survey import survey
from dit_cache_backends.models import uncompiled

OFF = (None, False)


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of ``module`` is compiled, by itself or by what it is called from."""
    return (
        get_eval_frame_callback() not in OFF
        or module._compiled_call_impl is not None
        or "dynamo_ctx" in module.__dict__
    )


def forward(
    attachment: Attachment,
    module: nn.Module,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    grad: bool,
    find: Callable[[], Blocks],
    trace: Callable[[Graphs], str],
    full: bool | None = None,
) -> Any:
    """Stand in for a call of ``module`` that is compiled; ``run`` is its own ``__call__``.

    ``find`` gives its blocks with their sites; ``trace`` has them called in the way that can be traced, and tells why
    it cannot. ``full`` says that no graph may be broken; it is known where this function was entered again, through
    what torch.compile made of it.
    """
    if attachment.busy():
        return run(*args, **kwargs)
    callback, state = get_eval_frame_callback(), attachment.compiled
    if callback in OFF:
        context = _context(module) if full is None else None
        known = state.whole is not None and state.whole.graphs.reason
        if context is None or (known and not context.fullgraph):
            return attachment.forward(run, args, kwargs, grad)
        if state.entrance is None or state.entrance[0] is not context:
            state.entrance = context, context(forward)
        return state.entrance[1](attachment, module, run, args, kwargs, grad, find, trace, context.fullgraph)
    set_eval_frame(None)
    try:
        model = uncompiled(module)
        if state.whole is None:
            blocks = find()
            state.whole = Whole(model, attachment.plans, blocks)
            state.whole.graphs.reason = obstacle(attachment.plans, blocks) or state.whole.graphs.reason
        graphs = state.whole.graphs
        if graphs.reason is None and not grad:
            graphs.learn(survey(attachment, model, args, kwargs))
        region = Region(attachment, state.whole, model, callback, (args, kwargs))
        region.reason = attachment.obstacle() or graphs.reason or hooked(module, model)
        full = _is_fullgraph(callback) if full is None else full
        if state.traced is not graphs and (full or not region.reason):
            region.reason = trace(graphs) or region.reason
            state.traced = graphs
        if region.reason and not full:
            return attachment.forward(region.within(run), args, kwargs, grad)
        try:
            return attachment.forward(run, args, kwargs, grad, region)
        except NotesLost:
            region.reason = graphs.reason
            again = region.within(run)
            return attachment.forward(again, args, kwargs, grad, region if full else None)
    finally:
        set_eval_frame(callback)


def _context(module: nn.Module) -> Any:
    """What torch.compile made of its arguments when the user compiled ``module``; None where that is not found."""
    from torch._dynamo.eval_frame import OptimizeContext

    found = [module.__dict__.get("dynamo_ctx")]
    # module.compile() keeps only the function it made; the arguments are in what that was made by.
    found += [cell.cell_contents for cell in getattr(module._compiled_call_impl, "__closure__", None) or ()]
    return next((each for each in found if isinstance(each, OptimizeContext)), None)


def _is_fullgraph(callback: Any) -> bool:
    """Whether torch.compile, as it is at work, refuses to break a graph."""
    from torch._dynamo.convert_frame import ConvertFrameAssert

    names = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable")
    return any(isinstance(getattr(callback, name, None), ConvertFrameAssert) for name in names)
