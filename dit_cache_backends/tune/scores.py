"""Every drawing that was made and how near it is to its dense picture; kept in a folder, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_cache_backends.compare.live import pixels_drawn
from dit_cache_backends.compare.measures import mean, psnr, ssim
from dit_cache_backends.compare.pixels import Pixels, same_size
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.trials import DENSE, Prompt, Setting, Trial, provenance

RUN = uuid.uuid4().hex[:12]
"""This process: times of one are compared with each other, not with those of another."""

REMEMBERED = 32
"""References kept in memory."""


@dataclass(frozen=True)
class Score:
    """One drawing, measured."""

    psnr: float
    """Against the dense drawing, in dB; the mean over its frames. 100 where it is the same."""
    ssim: float
    seconds: float
    transformer_seconds: float
    steps: int
    blocks_run: int
    blocks: int
    """Blocks that the dense drawing ran."""
    held: int = 0
    """Bytes that the backend held at the most, where that was measured."""
    run: str = ""
    """The process that drew it."""


class Scores:
    """Draws, measures and remembers.

    Args:
        trial: the model.
        folder: where results, references and kept pictures go; those of an earlier run are taken up.
        steps: denoising steps of the dense run.
        told: told each drawing that is made, before it is.

    Raises:
        ConfigError: the folder holds what cannot be read.
    """

    def __init__(
        self, trial: Trial, folder: Path, steps: int, told: Callable[[str], None] = lambda _: None
    ) -> None:
        self.trial, self.steps, self.folder = trial, steps, folder
        self.made = 0
        """Drawings made since."""
        self._taken_up: set[str] = set()
        self._told = told
        whose = provenance(trial.pipeline).to_dict()
        self._model = [whose[name] for name in ("pipeline", "transformers", "weights", "scheduler")]
        self._call = {str(key): repr(value) for key, value in sorted(trial.call.items())}
        self._references: OrderedDict[str, list[Pixels]] = OrderedDict()
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        self._file = folder / "drawings.jsonl"
        self._known = self._read()

    @property
    def taken_up(self) -> int:
        """Drawings of an earlier process that were of use in this one."""
        return len(self._taken_up)

    def score(
        self,
        setting: Setting,
        prompt: Prompt,
        call: Mapping[str, Any] | None = None,
        *,
        keep: bool = False,
        held: bool = False,
        turn: int = 0,
    ) -> Score:
        """The score of one setting on one prompt, drawn unless it is known.

        Args:
            setting: no cache, another number of steps, or a backend with its options.
            prompt: with its seed.
            call: further arguments of the pipeline's call, such as another size.
            keep: keep the picture, too.
            held: measure the memory that the backend holds; such a drawing is slower, and apart from others.
            turn: a drawing of another turn is another drawing, to be timed anew.

        Raises:
            ConfigError: it cannot be drawn with, or gives no pictures of the dense one's size.
        """
        dense = setting.config is None and setting.steps in (None, self.steps)
        key = self._key(setting, prompt, call, held, turn)
        picture = self._picture(key)
        known = self._known.get(key)
        if known is not None and (picture.exists() or not (keep or dense)):
            if known.run != RUN:
                self._taken_up.add(key)
            return known
        reference_key = self._key(DENSE, prompt, call, False, 0)
        if key != reference_key:
            self.score(DENSE, prompt, call)
        self._told(f"{setting.label}: {prompt.text}")
        drawn = self.trial.draw(prompt, setting, steps=self.steps, call=call, measure_held=held)
        self.made += 1
        frames = [frame for each in pixels_drawn(drawn, setting.label) for frame in each]
        if keep or key == reference_key:
            _write(picture, frames)
        reference = frames if key == reference_key else self._reference(reference_key)
        for frame, other in zip(reference, frames, strict=False):
            same_size(frame, other, ("the dense drawing", setting.label))
        if len(frames) != len(reference):
            raise ConfigError(
                f"{setting.label}: {len(frames)} frames, of which the dense drawing has {len(reference)}"
            )
        whole = drawn.blocks if key == reference_key else self._known[reference_key].blocks
        found = Score(
            mean([psnr(a, b) for a, b in zip(reference, frames, strict=True)]),
            mean([ssim(a, b) for a, b in zip(reference, frames, strict=True)]),
            drawn.seconds,
            drawn.transformer_seconds,
            drawn.steps,
            drawn.blocks_run,
            whole,
            drawn.held,
            RUN,
        )
        self._known[key] = found
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "label": setting.label, **asdict(found)}) + "\n")
        return found

    def picture(
        self, setting: Setting, prompt: Prompt, call: Mapping[str, Any] | None = None
    ) -> list[Pixels]:
        """The frames of a drawing that was kept."""
        return _load(self._picture(self._key(setting, prompt, call, False, 0)))

    def _reference(self, key: str) -> list[Pixels]:
        if key not in self._references:
            self._references[key] = _load(self._picture(key))
            if len(self._references) > REMEMBERED:
                self._references.popitem(last=False)
        self._references.move_to_end(key)
        return self._references[key]

    def _picture(self, key: str) -> Path:
        return self.folder / "pictures" / f"{key}.npz"

    def _key(
        self, setting: Setting, prompt: Prompt, call: Mapping[str, Any] | None, held: bool, turn: int
    ) -> str:
        steps = self.steps if setting.steps is None else setting.steps
        backend = setting.backend if isinstance(setting.backend, str) else setting.backend.__qualname__
        cache = None if setting.config is None else [backend, setting.config]
        more = {str(key): repr(value) for key, value in sorted({**prompt.call, **(call or {})}.items())}
        what = [self._model, self._call, self.steps, steps, cache, prompt.text, prompt.seed, more, held, turn]
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()[:24]

    def _read(self) -> dict[str, Score]:
        known: dict[str, Score] = {}
        if not self._file.exists():
            return known
        lines = self._file.read_text(encoding="utf-8").split("\n")
        try:
            for line in lines[:-1]:
                data = json.loads(line)
                key, _ = data.pop("key"), data.pop("label")
                known[key] = Score(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{self._file}, line {len(known) + 1}, is no drawing of `dit-cache tune`: {error}. Give another --work."
            ) from error
        if lines[-1]:  # the write that was under way when it was stopped
            self._file.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
        return known


def _write(path: Path, frames: list[Pixels]) -> None:
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(part, frames=np.stack(frames))
    part.replace(path)  # whole, or not at all


def _load(path: Path) -> list[Pixels]:
    with np.load(path) as data:
        return list(data["frames"])
