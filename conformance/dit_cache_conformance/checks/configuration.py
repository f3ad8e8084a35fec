"""Options: documented, typed, refused when wrong, and the same whatever way they come."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dit_cache_backends import CacheBackend, Capabilities, ConfigError
from dit_cache_backends.config import OptionInfo, describe
from dit_cache_conformance.check import NotForThisBackend, check, expect
from dit_cache_conformance.stage import PIPELINES, Stage
from dit_cache_conformance.subject import Subject


@check("configuration")
def the_backend_says_what_it_is(subject: Subject) -> None:
    """The class has a name in lower case with underscores, a docstring, a frozen dataclass ``Config``, capabilities.

    If this fails, add what is missing: the name is that of the entry point, the docstring's first line is shown by
    ``dit-cache backends``, and a frozen ``Config`` cannot change under a running generation.
    """
    cls = subject.cls
    expect(issubclass(cls, CacheBackend), f"{cls.__name__} is no subclass of dit_cache_backends.CacheBackend")
    expect(re.fullmatch(r"[a-z][a-z0-9_]*", cls.name), f"its name is {cls.name!r}")
    expect((cls.__doc__ or "").strip() and cls.__doc__ != CacheBackend.__doc__, "it has no docstring")
    expect(dataclasses.is_dataclass(cls.Config), f"its Config is no dataclass: {cls.Config!r}")
    params: Any = getattr(cls.Config, "__dataclass_params__", None)
    expect(params is not None and params.frozen, f"{cls.Config.__name__} is not frozen")
    expect(isinstance(cls.capabilities, Capabilities), f"its capabilities are {cls.capabilities!r}")
    expect(
        cls.capabilities.batch_decision in ("shared", "per_sample"),
        f"batch_decision is {cls.capabilities.batch_decision!r}, neither 'shared' nor 'per_sample'",
    )


@check("configuration")
def every_option_is_documented(subject: Subject) -> None:
    """Every option has a type and a sentence of help.

    If this fails, declare it by ``option(default, help="...")`` with an annotation.
    """
    for option in describe(subject.cls.Config):
        expect(option.type and option.type != "Any", f"{option.name} has no type")
        expect(len(option.help.strip()) >= 8, f"{option.name} has no help: {option.help!r}")


@check("configuration")
def every_option_is_read(subject: Subject) -> None:
    """Every option is read by the code of the backend or of its configuration.

    If this fails, the option is accepted and ignored, which is worse than refused: use it or take it out.
    """
    read = _read_in_a_run(subject)
    for name in _modules_of(subject.cls):
        for code in _code_of(sys.modules[name]):
            read.update(code.co_names)
            read.update(constant for constant in code.co_consts if isinstance(constant, str))
    ignored = [each.name for each in describe(subject.cls.Config) if each.name not in read]
    expect(not ignored, f"nothing reads {', '.join(ignored)}")


def _read_in_a_run(subject: Subject) -> set[str]:
    """What is asked of the configuration in a run, by whatever name it is composed of."""
    read: set[str] = set()

    def note(self: object, name: str) -> Any:
        frame = sys._getframe(1)
        generated = frame.f_code.co_filename.startswith("<")
        checking = frame.f_globals.get("__name__") in ("dataclasses", "copy", "dit_cache_backends.config")
        if not generated and not checking and frame.f_code.co_name != "__post_init__":
            read.add(name)
        return object.__getattribute__(self, name)

    watched: Any = type(subject.cls.Config.__name__, (subject.cls.Config,), {"__getattribute__": note})
    cls: Any = type(subject.cls.__name__, (subject.cls,), {"Config": watched})
    for options in (subject.eager, subject.never):
        stage, backend = Stage(subject.one_of(PIPELINES)), cls(dict(options))
        backend.enable(stage.pipe)
        stage.run()
        backend.disable()
    return read


def _modules_of(cls: type[CacheBackend]) -> set[str]:
    """Where its code may be: the modules of its classes and of those of its configuration, and what they import."""
    modules = {each.__module__ for base in (cls, cls.Config) for each in base.__mro__}
    package = cls.__module__.partition(".")[0]
    for name in list(modules):
        for value in vars(sys.modules[name]).values():
            where = getattr(value, "__module__", None)
            if isinstance(where, str) and where in sys.modules and where.partition(".")[0] == package:
                modules.add(where)
    return {name for name in modules if name in sys.modules and name != "builtins"}


def _code_of(module: types.ModuleType) -> Iterator[types.CodeType]:
    """The code of a module's functions and methods; what ``dataclass`` writes names every field and says nothing."""
    todo: list[Any] = []
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        members = vars(value).values() if inspect.isclass(value) else [value]
        for member in members:
            member = getattr(member, "fget", None) or getattr(member, "func", member)
            todo.append(getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None)
            todo.append(getattr(getattr(member, "__func__", None), "__code__", None))
    while todo:
        code = todo.pop()
        if isinstance(code, types.CodeType) and not code.co_filename.startswith("<"):
            yield code
            todo.extend(code.co_consts)


@check("configuration")
def an_unknown_option_is_named(subject: Subject) -> None:
    """An unknown option is a ConfigError that names it, and the nearest known one where there is one.

    If this fails, unknown keys are dropped somewhere: hand the whole configuration to ``CacheBackend.__init__``.
    """
    for wrong in ("no_such_option_at_all", *(option.name + "x" for option in _options(subject)[:4])):
        message = _refusal(subject, {wrong: 1})
        expect(message is not None, f"the unknown option {wrong!r} was accepted")
        expect(wrong in (message or ""), f"the error does not name {wrong!r}: {message}")
        if wrong != "no_such_option_at_all":
            expect(
                f"'{wrong[:-1]}'" in (message or ""), f"the error does not offer {wrong[:-1]!r}: {message}"
            )


@check("configuration")
def a_wrong_value_is_refused(subject: Subject) -> None:
    """A value of another type is a ConfigError that names the option and what was expected.

    If this fails, annotate the option with its type, and leave the checking to ``CacheBackend.__init__``.
    """
    for option in _options(subject):
        value: Any = object()
        for wrong in (value, {"of": ["another", object()]}):
            if option.type.startswith("dict") and isinstance(wrong, dict):
                continue
            message = _refusal(subject, {option.name: wrong})
            expect(message is not None, f"{option.name} ({option.type}) accepted {wrong!r}")
            expect(option.name in (message or ""), f"the error does not name {option.name}: {message}")


@check("configuration")
def a_choice_outside_the_list_is_refused(subject: Subject) -> None:
    """A choice that does not exist, and a number out of the documented range, are a ConfigError.

    If this fails, the range stands in the documentation only: declare it by ``option(..., choices=, minimum=, ...)``.
    """
    tried = 0
    for option in _options(subject):
        for wrong in _outside(option):
            tried += 1
            message = _refusal(subject, {option.name: wrong})
            expect(message is not None, f"{option.name} ({option.valid}) accepted {wrong!r}")
            expect(option.name in (message or ""), f"the error does not name {option.name}: {message}")
    if not tried:
        raise NotForThisBackend("no option has a range or choices")


def _outside(option: OptionInfo) -> list[Any]:
    if option.valid.startswith("one of"):
        return ["no such choice"]
    bounds = re.findall(r"(at least|above|at most|below) (-?[\d.e+-]+)", option.valid)
    wrong = [float(bound) + (-1 if word in ("at least", "above") else 1) for word, bound in bounds]
    whole = "int" in option.type and "float" not in option.type
    values: list[Any] = [int(number) if whole else number for number in wrong]
    return [[value] for value in values] if option.type.startswith(("list", "tuple")) else values


@check("configuration")
def several_mistakes_are_told_at_once(subject: Subject) -> None:
    """All mistakes of a configuration are reported together.

    If this fails, the configuration is checked option by option somewhere before ``CacheBackend.__init__``.
    """
    wrong = {"no_such_option_at_all": 1, "nor_this_one": 2}
    message = _refusal(subject, wrong)
    expect(message is not None and all(name in message for name in wrong), f"the error was: {message}")


@check("configuration")
def a_configuration_comes_in_every_form(subject: Subject) -> None:
    """A mapping, JSON text, a JSON or YAML file, and the Config itself give the same configuration.

    If this fails, ``__init__`` reads the mapping itself: leave that to ``CacheBackend.__init__``.
    """
    options = dict(subject.eager)
    expected = subject.make(**options).config
    text = json.dumps(options)
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in ("a.json", "a.yaml")]
        for path in written:
            path.write_text(text, encoding="utf-8")
        for source in (text, f"@{written[0]}", *written, expected, {"cache_config": options}):
            made = subject.cls(source).config
            expect(made == expected, f"from {str(source)[:60]} came {made}, expected {expected}")


@check("configuration")
def a_configuration_can_be_copied_and_pickled(subject: Subject) -> None:
    """Configurations are equal to their deep copies and to what comes out of a pickle, and backends made of them work.

    If this fails, a field holds what is not data: a function, a lock, an open file.
    """
    for options in (subject.eager, subject.never):
        config = subject.make(**options).config
        for made in (
            copy.deepcopy(config),
            pickle.loads(pickle.dumps(config)),
            subject.cls(copy.deepcopy(config)).config,
        ):
            expect(type(made) is type(config) and made == config, f"from {config} came {made}")
        if dataclasses.fields(config):
            name = dataclasses.fields(config)[0].name
            try:
                setattr(config, name, getattr(config, name))
            except dataclasses.FrozenInstanceError:
                continue
            expect(False, f"{type(config).__name__}.{name} can be assigned to")


@check("configuration")
def the_given_options_are_left_alone(subject: Subject) -> None:
    """The mapping that options came in is neither changed nor kept.

    If this fails, copy it, and everything in it that is a list or a mapping, before changing anything.
    """
    options = copy.deepcopy(dict(subject.eager))
    backend = subject.cls(options)
    expect(options == dict(subject.eager), f"{dict(subject.eager)} became {options}")
    before = copy.deepcopy(backend.config)
    options.clear()
    expect(backend.config == before, "the backend's configuration changed with the mapping it came in")


def _options(subject: Subject) -> list[OptionInfo]:
    options = describe(subject.cls.Config)
    if not options:
        raise NotForThisBackend("it has no options")
    return options


def _refusal(subject: Subject, wrong: dict[str, Any]) -> str | None:
    """What the error says; None where there was none."""
    kept = {name: value for name, value in subject.eager.items() if name not in wrong}
    try:
        subject.make(**kept, **wrong)
    except ConfigError as error:
        return str(error)
    return None
