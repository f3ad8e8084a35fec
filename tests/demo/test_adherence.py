"""The scorer against pictures whose content is known."""

import itertools
import random

import numpy as np
import pytest
from PIL import Image, ImageChops

from dit_cache_backends.demo import adherence, scenes
from dit_cache_backends.demo.scenes import Scene, Thing


def _drawn(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    rng = random.Random(seed)
    chosen = [scenes.random_scene(rng, held_out=rng.random() < 0.5) for _ in range(count)]
    return [(scene, scenes.draw(scene, rng, wander=rng.choice((0.0, 0.4, 1.0)))) for scene in chosen]


def test_what_is_drawn_is_recognised():
    scores = [adherence.score(scene.prompt, picture) for scene, picture in _drawn(400, 1)]
    assert adherence.shares(scores)["total"] >= 0.99


def test_what_is_drawn_is_recognised_through_noise():
    rng = np.random.default_rng(2)
    scores = []
    for scene, picture in _drawn(200, 2):
        noisy = np.asarray(picture) + rng.normal(0, 6, (64, 64, 3))
        scores.append(adherence.score(scene.prompt, Image.fromarray(noisy.clip(0, 255).astype(np.uint8))))
    assert adherence.shares(scores)["total"] >= 0.99


def test_a_picture_of_another_scene_is_not_accepted():
    drawn = _drawn(300, 3)
    for (scene, _), (other, picture) in itertools.pairwise(drawn):
        if scene != other:
            assert not adherence.score(scene.prompt, picture).total


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        (Scene((Thing("blue", "circle", "large"),), "white"), "color"),
        (Scene((Thing("red", "square", "large"),), "white"), "shape"),
        (Scene((Thing("red", "circle", "small"),), "white"), "size"),
        (Scene((Thing("red", "circle", "large"),), "gray"), "background"),
    ],
)
def test_only_the_attribute_that_differs_is_wrong(other: Scene, wrong: str):
    found = adherence.score(
        "a large red circle on a white background", scenes.draw(other, random.Random(0), wander=0)
    )
    said = {"background", "color", "shape", "size"}
    assert {name for name in said if not getattr(found, name)} == {wrong}
    assert found.relation is None
    assert not found.total


def test_two_things_in_the_other_order_break_the_relation_and_nothing_else():
    first, second = Thing("red", "circle"), Thing("blue", "square")
    for relation, other in (("above", "left of"), ("left of", "above")):
        prompt = Scene((first, second), "white", relation).prompt
        for drawn in (Scene((second, first), "white", relation), Scene((first, second), "white", other)):
            found = adherence.score(prompt, scenes.draw(drawn, random.Random(0)))
            assert (found.background, found.color, found.shape) == (True, True, True)
            assert (found.relation, found.total) == (False, False)


def test_swapped_colours_are_not_the_scene_that_was_asked_for():
    drawn = Scene((Thing("blue", "circle"), Thing("red", "square")), "white", "above")
    found = adherence.score(
        "a red circle above a blue square on a white background", scenes.draw(drawn, random.Random(0))
    )
    assert not found.total


def test_a_picture_of_nothing_or_of_noise_keeps_no_prompt():
    prompt = "a large red circle on a white background"
    empty = Image.new("RGB", (64, 64), scenes.PALETTE["white"])
    found = adherence.score(prompt, empty)
    assert (found.background, found.color, found.shape, found.total) == (True, False, False, False)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert not adherence.score(prompt, Image.fromarray(noise)).total


def test_a_thing_too_many_counts_against_the_picture():
    scene = Scene((Thing("red", "circle", "small"),), "white")
    picture = scenes.draw(scene, random.Random(0))
    twice = ImageChops.darker(picture, ImageChops.offset(picture, 0, 24))
    assert adherence.score(scene.prompt, picture).total
    assert not adherence.score(scene.prompt, twice).total


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="64x64"):
        adherence.score("a large red circle on a white background", Image.new("RGB", (32, 32)))


def test_shares_count_only_the_pictures_whose_sentence_says_it():
    one, two = "a small red ring on a white background", "a red ring above a blue ring on a white background"
    scores = [
        adherence.score(prompt, scenes.draw(scenes.parse(prompt), random.Random(0))) for prompt in (one, two)
    ]
    found = adherence.shares(
        [*scores, adherence.score(two, scenes.draw(scenes.parse(one), random.Random(0)))]
    )
    assert found["size"] == 1.0
    assert found["relation"] == 0.5
    assert found["total"] == pytest.approx(2 / 3)
