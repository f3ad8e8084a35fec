"""Keeps torch.compile out of the engine's own code, but not out of the model code that the engine calls.

Decisions that change from step to step cannot be part of a graph: traced, they would be frozen into it. So the frames
of the engine are skipped, and what they call (the blocks) is compiled on its own. Done without importing
``torch._dynamo``, which takes seconds and which only a compiling user needs.
"""

import inspect
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def _skip_code(code: CodeType) -> None:
    try:
        from torch._C._dynamo.eval_frame import (
            _FrameAction,
            _FrameExecStrategy,
            set_code_exec_strategy,
        )
    except ImportError:  # torch before 2.8
        from torch._dynamo.eval_frame import skip_code

        skip_code(code)
    else:
        set_code_exec_strategy(code, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))


def skip_frames(function: F) -> F:
    """Have torch.compile compile no frame of ``function`` on its own. Where traced code calls it, it is traced."""
    _skip_code(function.__code__)
    return function


def untraced(function: F) -> F:
    """Have torch.compile skip the frames of ``function``, and break its graph where traced code calls it."""
    skip_frames(function)
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def untraced_module(module: ModuleType) -> None:
    """``untraced`` for every function and method that ``module`` defines."""
    for member in vars(module).values():
        if getattr(member, "__module__", None) != module.__name__:
            continue
        for function in vars(member).values() if inspect.isclass(member) else (member,):
            found = (
                function.fget if isinstance(function, property) else getattr(function, "__func__", function)
            )
            if isinstance(found, FunctionType):
                untraced(found)
