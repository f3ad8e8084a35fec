"""One forward of a model, watched: what every repeated block was called with, what it gave, and where that went."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from dit_cache_backends.models import uncompiled

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Given(NamedTuple):
    """Where a number comes from: an item of what a block returned."""

    call: int
    item: int


Source = Given | str
"""A ``Given``, or the name of an argument of the model."""


@dataclass(slots=True)
class BlockCall:
    """A call of one block of one list."""

    number: int
    path: str
    index: int
    arguments: dict[str, Any]
    """By the name of the parameter; None where it was left to its default."""
    sources: dict[str, frozenset[Source]]
    """What each argument was made of: what blocks gave, followed through all that is not a block, and, followed through
    blocks too, the model's own arguments."""
    out: Any = None
    wrote: frozenset[str] = frozenset()
    """The arguments that the block has written into."""

    @property
    def items(self) -> tuple[Any, ...]:
        """What it returned, a bare tensor as one item."""
        return tuple(self.out) if isinstance(self.out, (tuple, list)) else (self.out,)

    @property
    def inputs(self) -> set[str]:
        """The arguments of the model on which what it was called with depends."""
        return {each for found in self.sources.values() for each in found if isinstance(each, str)}


@dataclass(slots=True)
class Trace:
    """What was seen."""

    blocks: dict[str, list[nn.Module]]
    """The lists of repeated blocks, by path."""
    calls: list[BlockCall] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    """The model's arguments with floating-point numbers, in the order of its signature."""
    output: frozenset[Source] = frozenset()
    """What the output was made of."""

    def of(self, path: str) -> list[BlockCall]:
        """The calls of the blocks of one list, as far as the list was run through once."""
        found: list[BlockCall] = []
        for call in self.calls:
            if call.path == path:
                if any(call.index == other.index for other in found):
                    break
                found.append(call)
        return found

    def reaches_output(self, given: Given) -> bool:
        """Whether the output was made of it, through whatever blocks."""
        todo, seen = [given], {given}
        while todo:
            source = todo.pop()
            if source in self.output:
                return True
            for call in self.calls[source.call + 1 :]:
                if any(source in found for found in call.sources.values()):
                    further = [Given(call.number, item) for item in range(len(call.items))]
                    todo += [each for each in further if each not in seen]
                    seen.update(further)
        return False


def repeated_blocks(model: nn.Module, but: Iterable[str] = ()) -> dict[str, list[nn.Module]]:
    """The lists whose members are of one class and have modules of their own; none that lies within a member of one.

    Args:
        model: any module.
        but: paths of lists that are passed over, so that those within their members are seen.
    """
    found: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, CONTAINERS) or path in but or any(path.startswith(f"{p}.") for p in found):
            continue
        members = list(module.children())
        if len({kind(member) for member in members}) != 1 or isinstance(members[0], CONTAINERS):
            continue
        if next(uncompiled(members[0]).children(), None) is not None:
            found[path] = members
    return found


def kind(module: nn.Module) -> type:
    """The class of a module, also of a compiled one."""
    return type(uncompiled(module))


def trace(model: nn.Module, inputs: dict[str, Any], but: Iterable[str] = ()) -> Trace:
    """Run ``model(**inputs)`` once and watch it. The model is as before after it."""
    seen = Trace(repeated_blocks(model, but))
    flow = _Flow()
    order = list(inspect.signature(type(uncompiled(model)).forward).parameters)
    for name in sorted(inputs, key=lambda name: order.index(name) if name in order else len(order)):
        tensors = list(tensors_in(inputs[name]))
        flow.name(tensors, frozenset({name}))
        if any(tensor.is_floating_point() for tensor in tensors):
            seen.inputs.append(name)
    with torch.no_grad(), _watched(seen, flow):
        out = model(**inputs)
    seen.output = flow.of(tensors_in(out))
    return seen


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument or a result, however it holds them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows of every tensor what it was made of, as long as it is on."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on = False
        self._sources: Any = WeakTensorKeyDictionary()

    def on(self) -> None:
        if not self._on:
            self._on = True
            self.__enter__()  # type: ignore[no-untyped-call]

    def off(self) -> None:
        if self._on:
            self._on = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def of(self, tensors: Iterable[Tensor]) -> frozenset[Source]:
        return frozenset().union(*(self._sources.get(tensor, frozenset()) for tensor in tensors))

    def name(self, tensors: Iterable[Tensor], sources: frozenset[Source]) -> None:
        for tensor in tensors:
            self._sources[tensor] = sources

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        sources = self.of([*tensors_in(args), *tensors_in(kwargs)])
        if sources:
            for tensor in tensors_in(out):
                self._sources[tensor] = sources | self._sources.get(tensor, frozenset())
                base = tensor._base
                if base is not None and any(
                    tensor is given for given in tensors_in(args)
                ):  # a write into a view
                    self._sources[base] = sources | self._sources.get(base, frozenset())
        return out


@contextmanager
def _watched(seen: Trace, flow: _Flow) -> Iterator[None]:
    depth = 0
    under_way: list[tuple[BlockCall, dict[str, int]]] = []

    def before(path: str, index: int, block: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal depth
        depth += 1
        if depth > 1:
            return
        signature = inspect.signature(type(uncompiled(block)).forward)
        names = list(signature.parameters)[1:]
        arguments: dict[str, Any] = dict.fromkeys(names)
        arguments |= dict(zip(names, args, strict=False)) | kwargs
        sources = {name: flow.of(tensors_in(value)) for name, value in arguments.items()}
        call = BlockCall(len(seen.calls), path, index, arguments, sources)
        under_way.append((call, _versions(arguments)))
        seen.calls.append(call)
        flow.off()  # what a block gives is new, however it was made; and not all that blocks do goes with a mode

    def after(block: nn.Module, args: Any, out: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth:
            return
        flow.on()
        call, versions = under_way.pop()
        call.out = out
        now = _versions(call.arguments)
        call.wrote = frozenset(name for name, version in versions.items() if now.get(name) != version)
        inputs: frozenset[Source] = frozenset(call.inputs)
        for item, value in enumerate(call.items):
            flow.name(tensors_in(value), inputs | {Given(call.number, item)})

    hooks = []
    for path, blocks in seen.blocks.items():
        for index, block in enumerate(blocks):

            def enter(
                module: nn.Module, args: Any, kwargs: Any, path: str = path, index: int = index
            ) -> None:
                before(path, index, module, args, kwargs)

            hooks += [
                block.register_forward_pre_hook(enter, with_kwargs=True),
                block.register_forward_hook(after),
            ]
    try:
        flow.on()
        yield
    finally:
        flow.off()
        for hook in hooks:
            hook.remove()


def _versions(arguments: dict[str, Any]) -> dict[str, int]:
    return {
        name: value._version
        for name, value in arguments.items()
        if isinstance(value, Tensor) and not value.is_inference()
    }
