"""The model that is shipped."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dit_cache_backends import demo
from dit_cache_backends.demo import adherence, evaluate, flow


@pytest.fixture(scope="module")
def pipeline() -> Iterator[object]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield demo.load_demo()
    torch.set_num_threads(threads)


def test_the_model_takes_at_most_sixteen_megabytes():
    files = [file for file in demo.MODEL.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


def test_it_is_a_plain_flux_pipeline_in_float32_of_twelve_blocks_of_both_kinds(pipeline):
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    assert type(pipeline) is FluxPipeline
    assert type(pipeline.transformer) is FluxTransformer2DModel
    assert type(pipeline.vae) is AutoencoderKL
    assert (
        len(pipeline.transformer.transformer_blocks),
        len(pipeline.transformer.single_transformer_blocks),
    ) == (4, 8)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            assert {weight.dtype for weight in part.parameters()} == {torch.float32}
            assert all(torch.isfinite(weight).all() for weight in part.parameters())


def test_it_loads_without_a_network():
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from dit_cache_backends.demo import load_demo\n"
        "print(type(load_demo()).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "FluxPipeline"


def test_importing_the_demo_imports_nothing_heavy():
    code = (
        "import sys, dit_cache_backends; before = set(sys.modules)\n"
        "import dit_cache_backends.demo\n"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"diffusers", "transformers", "PIL", "skimage", "numpy"} & set(done.stdout.split())


def test_nothing_in_the_folder_names_the_machine_it_was_made_on():
    for file in demo.MODEL.rglob("*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            path = str(found.get("_name_or_path", ""))
            assert not Path(path).is_absolute()


def test_a_folder_without_a_model_is_named_and_the_way_to_make_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="make train-demo"):
        demo.load_demo(tmp_path)


def test_it_paints_what_held_out_prompts_ask_for(pipeline):
    prompts = demo.held_out_prompts(24, seed=5)
    _, scores = evaluate.measure(pipeline, prompts, num_inference_steps=12)
    # Over 400 prompts and 28 steps it is what the model card says; 24 prompts leave room for chance.
    assert adherence.shares(scores)["total"] >= 0.9
    assert adherence.shares(scores)["background"] >= 0.9


def test_the_demo_s_own_prompts_are_painted_right(pipeline):
    pictures, scores = evaluate.measure(pipeline, demo.DEMO_PROMPTS, num_inference_steps=28)
    assert [p.size for p in pictures] == [(64, 64)] * len(demo.DEMO_PROMPTS)
    missed = [prompt for prompt, found in zip(demo.DEMO_PROMPTS, scores, strict=True) if not found.total]
    assert not missed


def test_it_paints_with_true_guidance_too(pipeline):
    prompts = demo.held_out_prompts(8, seed=6)
    guided = {"true_cfg_scale": 2.0, "negative_prompt": "", "num_inference_steps": 12}
    _, scores = evaluate.measure(pipeline, prompts, **guided)
    assert adherence.shares(scores)["total"] >= 0.75


def test_one_seed_is_one_picture_and_a_batch_paints_what_single_calls_paint(pipeline):
    prompts = list(demo.DEMO_PROMPTS[:2])
    together = demo.paint(pipeline, prompts, seed=3, num_inference_steps=4, output_type="pt")
    again = demo.paint(pipeline, prompts, seed=3, num_inference_steps=4, output_type="pt")
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    alone = demo.paint(pipeline, prompts[1:], seed=4, num_inference_steps=4, output_type="pt")
    assert torch.allclose(together[1], alone[0], atol=1e-3)


def test_a_plain_call_with_the_pipeline_s_own_defaults_paints_what_paint_paints(pipeline):
    prompt = demo.DEMO_PROMPTS[0]
    call = {**pipeline.call_defaults, "num_inference_steps": 3}
    picture = pipeline(prompt, generator=torch.Generator().manual_seed(9), **call).images[0]
    assert picture.size == (64, 64)
    assert picture.tobytes() == demo.paint(pipeline, [prompt], seed=9, num_inference_steps=3)[0].tobytes()


def test_the_two_encoders_tell_sentences_apart(pipeline):
    from dit_cache_backends.demo import assembly

    tokens, pooled = assembly.embed(pipeline, ["", *sorted(set(demo.held_out_prompts(200)))])
    for found in (tokens.flatten(1), pooled):
        assert 0.5 < found.std() < 2
        apart = torch.cdist(found, found) / found.shape[1] ** 0.5
        assert apart[~torch.eye(len(found), dtype=torch.bool)].min() > 0.05


def test_training_goes_on_where_it_stopped(tmp_path: Path):
    def run(name: str, phases: tuple[tuple[int, float], ...]) -> flow.Run:
        torch.manual_seed(0)
        made = flow.Run(_small(), tmp_path / name, "cpu", phases)
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(50, 4, 16, generator=generator)
        tokens, pooled = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 8, generator=generator)
        made.train(data, torch.arange(50) % 3, tokens, pooled, lambda _: None, log=lambda _: None)
        return made

    phases = ((4, 1e-3), (4, 1e-3))
    whole = run("whole.pt", phases)
    assert run("parts.pt", phases[:1]).step == 4
    resumed = run("parts.pt", phases)
    assert (whole.step, resumed.step) == (8, 8)
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_falls_when_there_is_something_to_learn(tmp_path: Path):
    torch.manual_seed(0)
    run = flow.Run(_small(), tmp_path / "run.pt", "cpu", ((150, 1e-2),))
    data = torch.ones(50, 4, 16) * torch.tensor([-2.0, 2.0]).repeat(25).view(50, 1, 1)
    tokens, pooled = torch.randn(3, 5, 16), torch.randn(3, 8)
    sentence = 1 + torch.arange(50) % 2
    losses = []

    def loss() -> float:
        with torch.no_grad():
            text = tokens[sentence[:32]], pooled[sentence[:32]]
            return float(run.loss(data[:32], text, (tokens[:1], pooled[:1]), seed=1))

    losses.append(loss())
    run.train(data, sentence, tokens, pooled, lambda _: None, log=lambda _: None)
    losses.append(loss())
    assert losses[1] < 0.5 * losses[0]


def test_a_student_learns_to_give_without_guidance_what_its_teacher_gives_with_it(tmp_path: Path):
    torch.manual_seed(0)
    teacher = _small().requires_grad_(False)
    tokens, pooled, latents = torch.randn(3, 5, 16), torch.randn(3, 8), torch.randn(40, 4, 16)
    noisy, t, text = (
        latents[:20],
        torch.full((20,), 0.5),
        (tokens[1:2].expand(20, -1, -1), pooled[1:2].expand(20, -1)),
    )
    empty = tokens[:1].expand(20, -1, -1), pooled[:1].expand(20, -1)
    with torch.no_grad():
        given, without = (flow.velocity(teacher, noisy, t, *words) for words in (text, empty))
    guided = without + flow.GUIDANCE * (given - without)

    run = flow.Run(
        copy.deepcopy(teacher).requires_grad_(True), tmp_path / "run.pt", "cpu", ((250, 5e-3),), teacher
    )
    run.train(latents, torch.ones(40, dtype=torch.long), tokens, pooled, lambda _: None, log=lambda _: None)
    with torch.no_grad():
        learned = flow.velocity(run.model.eval(), noisy, t, *text)
        left_alone = flow.velocity(run.model, noisy, t, *empty)
    assert (learned - guided).norm() < 0.35 * (given - guided).norm()
    assert (left_alone - without).norm() < 0.5 * (given - without).norm()


def test_the_learning_rate_warms_up_and_falls_once_per_phase():
    phases = ((1000, 1e-3), (500, 2e-4))
    rates = [flow.learning_rate(step, phases) for step in range(1500)]
    assert rates[0] < 1e-5
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert rates[999] == pytest.approx(2e-5, rel=0.1)
    assert rates[1000] == 2e-4
    assert rates[1000:] == sorted(rates[1000:], reverse=True)
    assert flow.learning_rate(1500, phases) == 0


def test_times_are_spread_evenly_over_the_logit_normal():
    found = flow.times(1000, torch.Generator().manual_seed(0)).sort().values
    assert found[0] > 0
    assert found[-1] < 1
    assert found[500] == pytest.approx(0.5, abs=0.01)
    assert found[841] == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.01)


def _small():
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )


def test_packing_is_the_pipeline_s_own_and_unpacking_its_inverse(pipeline):
    from dit_cache_backends.demo import polish

    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(polish.pack(latents), pipeline._pack_latents(latents, 2, 4, 16, 16))
    assert torch.equal(polish.unpack(polish.pack(latents), 16), latents)
