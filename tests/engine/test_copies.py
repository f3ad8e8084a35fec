"""Copies of an enabled model are plain, and drive nothing of the original."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dit_cache_backends import AlreadyEnabledError
from dit_cache_conformance.tiny import Tiny, build, build_transformer

from .counting import block_lists, executed
from .runs import inputs, kinds, run_plain, run_told, same
from .strategies import always, planned


def by_torch_save(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # type: ignore[no-any-return]
    "pickle protocol 0": lambda model: pickle.loads(pickle.dumps(model, 0)),  # type: ignore[no-any-return]
    "torch.save": by_torch_save,
}


def modules_of(model: nn.Module) -> list[nn.Module]:
    return [model, *(block for blocks in block_lists(model).values() for block in blocks)]


@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan_video"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_of_the_plain_classes_and_gives_the_plain_outputs(how: str, name: str) -> None:
    model = build_transformer(name)
    classes = [type(module) for module in modules_of(model)]
    run = inputs(name, 3)
    plain = run_plain(model, run)
    backend = always()
    backend.enable(model)
    run_told(backend, model, run[:2])
    made = COPIES[how](model)
    assert [type(module) for module in modules_of(made)] == classes
    with executed(made) as ran:
        assert same(run_told(backend, made, run), plain)
    assert len(ran) == 3 * len(modules_of(made)[1:])


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_drives_nothing_of_the_original(how: str) -> None:
    model = build_transformer("sd3")
    run, other = inputs("sd3", 4), inputs("sd3", 4, seed=9)
    backend = planned("1100")
    backend.enable(model)
    alone = run_told(backend, model, run)
    found = []
    for step, arguments in enumerate(run):
        with backend.step(step, 4):
            found.append(model(**arguments)[0])
            COPIES[how](model)(**other[step])
    assert same(found, alone)
    assert len(backend.summary().rows) == 4


def test_a_shallow_copy_runs_plain_and_leaves_the_original_caching() -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", 4)
    plain = run_plain(model, run)
    backend = planned("10")
    backend.enable(model)
    cached = run_told(backend, model, run)
    shallow = copy.copy(model)
    assert type(shallow) is type(model).__mro__[1]
    assert same(run_told(backend, shallow, run), plain)
    assert same(run_told(backend, model, run), cached)


def test_a_shallow_copy_shares_its_blocks_and_so_cannot_be_enabled_as_well() -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", 4)
    plain = run_plain(model, run)
    backend, second = planned("10"), planned("10")
    backend.enable(model)
    cached = run_told(backend, model, run)
    shallow = copy.copy(model)
    with pytest.raises(AlreadyEnabledError):
        second.enable(shallow)
    assert not second.is_enabled()
    assert same(run_told(backend, model, run), cached)
    backend.disable()
    assert same(run_plain(model, run), plain)
    second.enable(shallow)
    assert same(run_told(second, shallow, run), cached)


def test_a_copy_can_be_enabled_by_itself() -> None:
    model = build_transformer("sd3")
    run = inputs("sd3", 4)
    backend, second = planned("10"), planned("1010")
    backend.enable(model)
    expected = run_told(backend, model, run)
    made = copy.deepcopy(model)
    second.enable(made)
    other = run_told(second, made, run)
    assert not same(other, expected)
    backend.disable()
    assert same(run_told(second, made, run), other)


def test_a_copied_pipeline_is_plain() -> None:
    tiny = build("wan22")
    plain = tiny.run(4)
    backend = planned("10")
    backend.enable(tiny.pipe)
    cached = tiny.run(4)
    second = Tiny.__new__(Tiny)
    second.spec, second.pipe = tiny.spec, copy.deepcopy(tiny.pipe)
    assert torch.equal(second.run(4), plain)
    assert torch.equal(tiny.run(4), cached)
    assert not torch.equal(cached, plain)
    assert kinds(backend) == {}


def test_an_enabled_model_is_saved_as_itself(tmp_path: Path) -> None:
    model: Any = build_transformer("sd3")
    weights = dict(model.state_dict())
    always().enable(model)
    assert list(model.state_dict()) == list(weights)
    model.save_pretrained(tmp_path)
    loaded = type(model).__mro__[1].from_pretrained(tmp_path)
    assert '"_class_name": "SD3Transformer2DModel"' in (tmp_path / "config.json").read_text()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_an_enabled_model_is_still_an_instance_of_its_class_under_its_name() -> None:
    model = build_transformer("flux")
    names = [
        (type(module).__name__, type(module).__qualname__, type(module).__module__)
        for module in modules_of(model)
    ]
    classes = [type(module) for module in modules_of(model)]
    always().enable(model)
    after = [
        (type(module).__name__, type(module).__qualname__, type(module).__module__)
        for module in modules_of(model)
    ]
    assert after == names
    assert all(isinstance(module, cls) for module, cls in zip(modules_of(model), classes, strict=True))
