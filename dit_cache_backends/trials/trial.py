"""A model that is drawn with under one setting after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from typing_extensions import Self

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.hosts.calls import arguments_of, steps_of
from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams
from dit_cache_backends.models import card_for, uncompiled
from dit_cache_backends.pipelines import transformers_of
from dit_cache_backends.trials.prompts import Prompt
from dit_cache_backends.trials.setting import DENSE, Setting

if TYPE_CHECKING:
    import torch

    from dit_cache_backends.summary import Summary

__all__ = ["Drawing", "Trial"]

StepListener = Callable[[int, Mapping[str, Tensor]], None]


@dataclass
class Drawing:
    """What came of one prompt under one setting."""

    images: list[Any]
    """As the pipeline gave them; of a video pipeline its videos, each a list of frames."""
    latents: Tensor | None
    """The final latents, on the CPU, before they are decoded; None where the pipeline shows none."""
    seconds: float
    """Of the whole call."""
    transformer_seconds: float
    """Of it, those spent in the transformers; the whole where that cannot be told."""
    steps: int
    """Denoising steps of the run."""
    calls: int
    """Calls of the transformers."""
    blocks_run: int
    blocks: int
    """Blocks that a dense run of as many steps runs."""
    held: int = 0
    """Bytes that the backend held between two steps at the most, where that was asked for."""
    summary: Summary | None = field(default=None, repr=False)


class Trial:
    """Draws with one model, prompt by prompt, under any setting; also a context manager.

    Args:
        model: as for :class:`~dit_cache_backends.hosts.omni.Omni`: ``"demo"``, a folder, a name, or a pipeline.
        call: arguments of every call of the pipeline: ``height``, ``guidance_scale``, ...
        dtype: as for ``Omni``.
        device: as for ``Omni``.

    Raises:
        ConfigError: the model cannot be loaded, or has no argument of a name in ``call``.
        UnknownTransformerError: nothing is known of its transformer.
    """

    def __init__(
        self,
        model: object,
        call: Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.name = model if isinstance(model, str) else getattr(model, "name_or_path", "") or "pipeline"
        if isinstance(model, Path):
            self.name = str(model)
        self._omni = Omni(model, None, dtype=dtype, device=device)
        self.pipeline: Any = self._omni.pipeline
        self.call = dict(call or {})
        self._known = arguments_of(self.pipeline)
        self._depths = {id(module): _depth(module) for module in self.transformers.values()}
        self.check(DENSE)

    @property
    def transformers(self) -> dict[str, nn.Module]:
        """The model's transformers by their names on the pipeline."""
        return transformers_of(self.pipeline)

    @property
    def steps(self) -> int:
        """The steps of a call that says no number; 0 where that is not known."""
        defaults = dict(getattr(self.pipeline, "call_defaults", {}))
        return steps_of(self.pipeline, defaults | self.call)

    @property
    def arguments(self) -> frozenset[str]:
        """The names of what the pipeline is called with."""
        return frozenset(self._known)

    def check(self, setting: Setting, call: Mapping[str, Any] | None = None) -> None:
        """Raise what ``draw`` would raise about a setting and the call's arguments, without drawing.

        Raises:
            ConfigError: they do not fit the backend, the model or the pipeline.
        """
        self._omni.engine.check("a prompt", self._params(setting, 0, None, call or {}))

    def draw(
        self,
        prompt: Prompt | str,
        setting: Setting = DENSE,
        *,
        seed: int | None = None,
        steps: int | None = None,
        call: Mapping[str, Any] | None = None,
        listener: StepListener | None = None,
        measure_held: bool = False,
    ) -> Drawing:
        """Draw one prompt.

        Args:
            prompt: what to draw; one of a file brings its seed and arguments.
            setting: no cache, or a backend with its options. Its own number of steps goes before ``steps``.
            seed: of the noise, unless the prompt has one; 0 where neither says.
            steps: denoising steps; the pipeline's own number unless said.
            call: further arguments of the pipeline's call, for this drawing alone.
            listener: told every step that was made, with what the pipeline shows of it (``latents``).
            measure_held: see what the backend holds after every step. It costs time.

        Raises:
            ConfigError: a setting or an argument does not fit.
        """
        if isinstance(prompt, str):
            prompt = Prompt(prompt, 0)
        seed = prompt.seed if seed is None else seed
        shown: dict[str, Tensor] = {}
        held = 0

        def step_made(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal held
            shown.update(tensors)
            if listener is not None:
                listener(step, tensors)
            if measure_held:
                held = max(held, self._omni.engine.stats().bytes)
            return tensors

        arguments = {**prompt.call, **(call or {})}
        # A pipeline takes a text or its embedding, not both.
        embedded = {name: value for name, value in arguments.items() if name == "prompt_embeds"}
        params = self._params(setting, seed, steps, arguments)
        if "callback_on_step_end" in self._known:
            params.extra_args["callback_on_step_end"] = step_made
        elif listener is not None or measure_held:
            raise ConfigError(
                f"{type(self.pipeline).__name__} tells nobody its steps (it has no callback_on_step_end), so its "
                "latents cannot be seen between them. Use a pipeline that does."
            )
        called: dict[int, int] = dict.fromkeys(self._depths, 0)

        def count(module: nn.Module, *_: object) -> None:
            called[id(module)] += 1

        hooks = [module.register_forward_pre_hook(count) for module in self.transformers.values()]
        try:
            output = self._omni.generate(embedded or prompt.text, params, use_tqdm=False)[0]
        finally:
            for hook in hooks:
                hook.remove()
        summary = output.cache_summary
        blocks = sum(times * self._depths[key] for key, times in called.items())
        latents = shown.get("latents")
        return Drawing(
            images=output.images,
            latents=None if latents is None else latents.detach().cpu(),
            seconds=output.timings["total"],
            transformer_seconds=output.timings.get("transformer", output.timings["total"]),
            steps=setting.steps or steps or self.steps,
            calls=sum(called.values()),
            blocks_run=blocks if summary is None else summary.blocks_run,
            blocks=blocks,
            held=held,
            summary=summary,
        )

    def close(self) -> None:
        """Leave the pipeline as it was."""
        self._omni.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(
        self, setting: Setting, seed: int, steps: int | None, call: Mapping[str, Any]
    ) -> OmniDiffusionSamplingParams:
        cached = setting.config is not None
        return OmniDiffusionSamplingParams(
            num_inference_steps=setting.steps or steps,
            seed=seed,
            extra_args={**self.call, **call},
            cache_backend=setting.backend if cached else None,
            cache_config=dict(setting.config or {}) if cached else None,
        )


def _depth(transformer: nn.Module) -> int:
    """The blocks of a transformer's stacks."""
    model, card = uncompiled(transformer), card_for(transformer)
    stacks = card.stacks if card.arrange is None else card.arrange(model)
    return sum(
        len(list(model.get_submodule(blocks.path).children())[slice(*blocks.part)])
        for each in stacks
        for blocks in each.lists
    )
