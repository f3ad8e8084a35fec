"""`python -m dit_cache_backends.demo.train`: data, training and evaluation of the demo model from nothing."""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dit_cache_backends.demo import assembly, autoencoder, card, flow, polish

SEED = 2
SCENES = 30_000
AUTOENCODER_SCENES = 40_000
DECODER_SCENES = 16_000
EXPORT_EVERY = 1000  # steps

log: Any = partial(print, flush=True)


def autoencoder_stage(out: Path, device: str) -> Any:
    """The trained, whitened autoencoder; read back where `out` has it."""
    torch.manual_seed(SEED)
    vae = autoencoder.build()
    kept = out / "autoencoder.pt"
    if not kept.exists():
        _, images = autoencoder.drawn(AUTOENCODER_SCENES, SEED, wander=1.0)
        autoencoder.train(vae, images, SEED, device, log)
        torch.save(_rounded(vae), kept)
    vae.load_state_dict(torch.load(kept, weights_only=True))
    return vae.cpu().eval().requires_grad_(False)


def decoder_stage(out: Path, vae: Any, device: str) -> Any:
    """The same autoencoder with its decoder trained further; read back where `out` has it."""
    kept = out / "decoder.pt"
    if not kept.exists():
        autoencoder.train_decoder(vae, DECODER_SCENES, SEED, device, log)
        torch.save(_rounded(vae), kept)
    vae.load_state_dict(torch.load(kept, weights_only=True))
    return vae.cpu().eval().requires_grad_(False)


def polish_stage(out: Path, pipeline: Any, phase: int, device: str) -> None:
    """The pipeline's decoder trained, in place, on what its transformer makes; read back where `out` has it."""
    kept = out / f"polished{phase + 1}.pt"
    if not kept.exists():
        polish.polish(pipeline, *polish.PHASES[phase], SEED + 2 + phase, device, log)
        torch.save(_rounded(pipeline.vae), kept)
    pipeline.vae.load_state_dict(torch.load(kept, weights_only=True))
    pipeline.vae.cpu().eval().requires_grad_(False)


def _rounded(module: Any) -> dict[str, torch.Tensor]:
    """A module's weights as they will be shipped: rounded to float16, kept as contiguous float32."""
    return {n: w.detach().cpu().half().float().contiguous() for n, w in module.state_dict().items()}


def latents_stage(out: Path, vae: Any, device: str) -> tuple[list[str], torch.Tensor]:
    """The training set: sentences, and packed latents (n, 64, 16); read back where `out` has them."""
    kept = out / "latents.pt"
    if not kept.exists():
        prompts, images = autoencoder.drawn(SCENES, SEED + 1, wander=0.4)
        latents = autoencoder.encode(vae.to(device), images, device)
        torch.save({"prompts": prompts, "latents": polish.pack(latents).contiguous()}, kept)
        vae.cpu()
    state = torch.load(kept, weights_only=True)
    return state["prompts"], state["latents"]


def guided_stage(
    out: Path,
    pipeline: Any,
    latents: torch.Tensor,
    rows: torch.Tensor,
    text: tuple[torch.Tensor, torch.Tensor],
    given: argparse.Namespace,
) -> flow.Run:
    """The pipeline's transformer replaced by one that gives without guidance what it gives with it."""
    teacher = pipeline.transformer
    student = copy.deepcopy(teacher).requires_grad_(True)
    phases = ((given.steps, flow.GUIDED_PHASES[0][1]),) if given.steps else flow.GUIDED_PHASES
    run = flow.Run(student, out / "guided.pt", given.device, phases, teacher.to(given.device))
    if given.compile:
        student.compile()
        teacher.compile()
    run.train(latents, rows, *text, lambda _: None, log)
    pipeline.register_modules(transformer=run.average)
    return run


def main(arguments: list[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m dit_cache_backends.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where data and states are kept")
    parser.add_argument("--export", type=Path, help="the model's folder (default: OUT/model)")
    parser.add_argument("--steps", type=int, help="one phase of so many steps instead of the recipe's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile: a fifth faster")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    vae = autoencoder_stage(given.out, given.device)
    prompts, latents = latents_stage(given.out, vae, given.device)
    vae = decoder_stage(given.out, vae, given.device)
    torch.manual_seed(SEED)
    transformer = assembly.build_transformer()
    pipeline = assembly.assemble(vae, transformer)
    sentences = ["", *dict.fromkeys(prompts)]
    tokens, pooled = assembly.embed(pipeline, sentences)
    place = {sentence: row for row, sentence in enumerate(sentences)}
    rows = torch.tensor([place[prompt] for prompt in prompts])
    phases = ((given.steps, flow.PHASES[0][1]),) if given.steps else flow.PHASES
    run = flow.Run(transformer, given.out / "flow.pt", given.device, phases)
    pipeline.register_modules(transformer=run.average)
    if given.compile:
        transformer.compile()
    folder = given.export or given.out / "model"

    def look(run: flow.Run) -> None:
        if run.step % EXPORT_EVERY == 0:
            assembly.export(pipeline, folder)

    log(f"everything before the transformer's training: {time.perf_counter() - began:.0f} s")
    for phase in range(len(phases)):
        run.phases = phases[: phase + 1]
        run.train(latents, rows, tokens, pooled, look, log)
        if phase < len(polish.PHASES):
            polish_stage(given.out, pipeline, phase, given.device)
    guided = guided_stage(given.out, pipeline, latents, rows, (tokens, pooled), given)
    assembly.export(pipeline, folder)
    log(card.write(folder, run.seconds + guided.seconds, phases, guided.phases, given.device))


if __name__ == "__main__":
    main()
