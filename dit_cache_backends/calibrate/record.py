"""A record: the measurements of dense runs, a line each, in a file that grows and can be cut off anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_cache_backends.calibrate.origin import Origin
from dit_cache_backends.calibrate.series import Series
from dit_cache_backends.errors import ConfigError

VERSION = 1
SUFFIX = ".jsonl"


@dataclass
class Record:
    """What was measured on some or all of the prompts."""

    origin: Origin
    runs: dict[int, dict[str, Series]] = field(default_factory=dict)
    """By the number of the prompt, each with its series by ``transformer:branch``."""

    @property
    def missing(self) -> list[int]:
        """The numbers of the prompts that are not recorded yet."""
        return [number for number in range(self.origin.prompts) if number not in self.runs]

    def series(self, name: str) -> list[Series]:
        """One ``transformer:branch`` in all runs that have it, in the order of the prompts."""
        return [self.runs[number][name] for number in sorted(self.runs) if name in self.runs[number]]

    def names(self) -> list[str]:
        """Every ``transformer:branch``, in the order in which the first run calls them."""
        return list(dict.fromkeys(name for number in sorted(self.runs) for name in self.runs[number]))

    def transformers(self) -> list[str]:
        """The transformers that were called."""
        found = (series for number in sorted(self.runs) for series in self.runs[number].values())
        return list(dict.fromkeys(series.transformer for series in found))

    def of_prompts(self, numbers: Sequence[int]) -> Record:
        """The same with these prompts alone; those that are not recorded are left out."""
        return Record(self.origin, {number: self.runs[number] for number in numbers if number in self.runs})

    def write(self, path: Path) -> None:
        """Write all of it, in the order of the prompts, in place of what is there."""
        lines = [_head(self.origin), *(_line(number, self.runs[number]) for number in sorted(self.runs))]
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(path)


def read_record(path: Path | str) -> Record:
    """Read a record. A last line that was cut off is left out.

    Raises:
        ConfigError: if it cannot be read, is of another version, or no record.
    """
    return _read(Path(path).expanduser())[0]


def merge_records(paths: Sequence[Path | str]) -> Record:
    """One record of several shards.

    Raises:
        ConfigError: if one cannot be read, they are of different runs, or two measured a prompt differently.
    """
    if not paths:
        raise ConfigError("no records were given to be merged")
    first, *others = paths
    merged = read_record(first)
    for path in others:
        each = read_record(path)
        differences = merged.origin.other_run(each.origin)
        if differences:
            raise ConfigError(
                f"{path} and {first} are records of different runs and cannot be merged: {'; '.join(differences)}"
            )
        for number, run in each.runs.items():
            if number in merged.runs and _line(number, merged.runs[number]) != _line(number, run):
                raise ConfigError(
                    f"{path}: prompt {number + 1} is in another record as well, with other numbers. Leave one out."
                )
            merged.runs[number] = run
    return merged


class GrowingRecord:
    """A record on disk to which runs are added; what is added stays, whatever happens then.

    Raises:
        ConfigError: if the file is there and of another run, or cannot be read.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path = path
        self.record = Record(origin)
        if path.exists() and path.stat().st_size:
            self.record, whole = _read(path)
            differences = self.record.origin.other_run(origin)
            if differences:
                raise ConfigError(
                    f"{path} is a record of another run, which this one cannot go on with: {'; '.join(differences)}. "
                    "Give another output, or move the file away."
                )
            # What was being written when the run before was killed.
            os.truncate(path, whole)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(_head(origin))

    def add(self, number: int, run: dict[str, Series]) -> None:
        """Put the run of one prompt behind the others."""
        self._append(_line(number, run))
        self.record.runs[number] = run

    def in_order(self) -> None:
        """Write the runs in the order of their prompts, if they are not."""
        if list(self.record.runs) != sorted(self.record.runs):
            self.record.write(self.path)

    def _append(self, line: str) -> None:
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def _head(origin: Origin) -> str:
    return _json({"record": VERSION, "measured": origin.to_dict()})


def _line(number: int, run: Mapping[str, Series]) -> str:
    return _json({"prompt": number, "series": [each.to_dict() for each in run.values()]})


def _json(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n"


def _read(path: Path) -> tuple[Record, int]:
    """The record, and how many bytes of the file are whole lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the record {path} cannot be read: {error}") from error
    whole = content.rfind(b"\n") + 1
    first, *lines = content[:whole].splitlines() or [b""]
    head = _parsed(first, f"{path}, line 1")
    if "record" not in head:
        raise ConfigError(f"{path} is no record of `dit-cache calibrate`: it does not begin as one")
    if head["record"] != VERSION:
        raise ConfigError(
            f"{path} is a record of version {head['record']!r}; this release reads version {VERSION}. Record anew, or "
            "use the release that wrote it."
        )
    record = Record(Origin.from_dict(head.get("measured"), str(path)))
    for number, line in enumerate(lines, 2):
        where = f"{path}, line {number}"
        data = _parsed(line, where)
        prompt, listed = data.get("prompt"), data.get("series")
        if not isinstance(prompt, int) or not isinstance(listed, list):
            raise ConfigError(f"{where}: expected the run of a prompt, got {line[:60]!r}")
        run = [Series.from_dict(each, where) for each in listed]
        record.runs[prompt] = {each.name: each for each in run}
    return record, whole


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: this is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping, got {data!r:.60}")
    return data
