"""The grammar, the drawing and the tokenizers."""

import random

import pytest

from dit_cache_backends.demo import DEMO_PROMPTS, held_out_prompts, scenes, text


def _scenes(count: int, seed: int, held_out: bool = False) -> list[scenes.Scene]:
    rng = random.Random(seed)
    return [scenes.random_scene(rng, held_out) for _ in range(count)]


def test_a_sentence_says_all_that_its_scene_holds():
    for scene in _scenes(500, 1) + scenes.single_scenes():
        assert scenes.parse(scene.prompt) == scene
        assert scenes.parse(scene.prompt.upper()) == scene


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a red circle",
        "a large red circle",
        "a large red circle on a pink background",
        "a huge red circle on a white background",
        "a red circle under a blue square on a white background",
        "an red circle above a blue square on a white background",
    ],
)
def test_a_sentence_of_another_grammar_is_refused_with_an_example(prompt: str):
    with pytest.raises(ValueError, match="one is 'a small red circle on a white background'"):
        scenes.parse(prompt)


def test_things_differ_in_colour_from_each_other_and_from_their_ground():
    for scene in _scenes(2000, 2):
        colors = [scene.background, *(thing.color for thing in scene.things)]
        assert len(set(colors)) == len(colors)


def test_held_out_combinations_are_never_drawn_for_training():
    trained = {scene.prompt for scene in _scenes(20_000, 3)}
    held_out = {scene.prompt for scene in _scenes(2000, 3, held_out=True)}
    assert not trained & held_out
    assert all(scenes.parse(prompt).held_out for prompt in held_out)


def test_about_one_combination_in_ten_is_held_out_and_it_has_every_word():
    singles = scenes.single_scenes()
    held_out = [scene for scene in singles if scene.held_out]
    assert 0.07 < len(held_out) / len(singles) < 0.13
    words = {word for prompt in held_out_prompts(400) for word in prompt.split()}
    assert words == set(scenes.vocabulary())


def test_the_demo_s_prompts_are_held_out():
    assert len(DEMO_PROMPTS) >= 4
    assert all(scenes.parse(prompt).held_out for prompt in DEMO_PROMPTS)
    assert any(scenes.parse(prompt).relation for prompt in DEMO_PROMPTS)


def test_held_out_prompts_are_the_same_every_time_and_begin_alike():
    assert held_out_prompts(100) == held_out_prompts(100)
    assert held_out_prompts(100)[:30] == held_out_prompts(30)
    assert len(set(held_out_prompts(30))) == 30
    assert held_out_prompts(30, seed=1) != held_out_prompts(30)


def test_the_same_randomness_draws_the_same_picture():
    for scene in _scenes(20, 4):
        first, second = (scenes.draw(scene, random.Random(5)) for _ in range(2))
        assert first.tobytes() == second.tobytes()
        assert first.size == (64, 64)
        assert first.getpixel((0, 0)) == scenes.PALETTE[scene.background]


def test_things_stay_within_the_picture_and_apart():
    import numpy as np
    from skimage.measure import label

    for number, scene in enumerate(_scenes(300, 6)):
        picture = np.asarray(scenes.draw(scene, random.Random(number), wander=1.0)).astype(int)
        ground = np.array(scenes.PALETTE[scene.background])
        thing = np.abs(picture - ground).sum(axis=2) > 0
        assert not thing[0].any()
        assert not thing[-1].any()
        assert not thing[:, 0].any()
        assert not thing[:, -1].any()
        assert label(thing, connectivity=2).max() == len(scene.things)


@pytest.mark.parametrize("start", [True, False])
def test_no_word_of_the_grammar_is_unknown_to_the_tokenizers(start: bool):
    tokenizer = text.tokenizer(start)
    for prompt in [scene.prompt for scene in _scenes(500, 7)] + [s.prompt for s in scenes.single_scenes()]:
        ids = tokenizer(prompt, padding="max_length", max_length=text.TOKENS).input_ids
        assert len(ids) == text.TOKENS
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert tokenizer.unk_token_id in tokenizer("a pink elephant").input_ids
