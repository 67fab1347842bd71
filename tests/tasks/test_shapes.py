"""Shapes: pictures, captions in two wordings, the verifier, the expert, the base."""

from collections import Counter

import numpy as np
import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.language import shapes
from anypolicy.tasks.language.base import MakesPolicy, Probes, Revises
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.shapes import (
    COLOURS,
    FACTS,
    READINGS,
    Fact,
    Shapes,
    closest,
    draw,
    sentence,
    sentences,
    verdicts,
)
from anypolicy.tasks.split import place

RED, BLUE, GOLD = Fact(2, "red", "circle"), Fact(1, "blue", "square"), Fact(3, "yellow", "triangle")
NO_IDS = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def task():
    return Shapes(0, prompts=40, heldout=20)


def of(*facts):
    """A prompt that shows these facts."""
    return Shapes(0, prompts=1, heldout=1).prompt(shapes.Scene(facts, np.zeros((32, 32, 3), np.uint8)))


def seen(image):
    """How many shapes of every kind are in a picture, by comparing each cell with each glyph in each place."""
    found = Counter()
    for row in range(0, 32, 8):
        for column in range(0, 32, 8):
            cell = image[row : row + 8, column : column + 8]
            for colour, rgb in COLOURS.items():
                mask = (cell == np.array(rgb, np.uint8)).all(-1)
                for shape, glyph in shapes.GLYPHS.items():
                    places = [np.pad(glyph, ((y, 1 - y), (x, 1 - x))) for y in (0, 1) for x in (0, 1)]
                    found[colour, shape] += any(np.array_equal(mask, p) for p in places)
    return +found


def test_pictures_hold_what_their_captions_say():
    rng = numpy_generator(3, "test")
    for _ in range(100):
        scene = draw(rng)
        assert scene.image.shape == (32, 32, 3)
        assert 1 <= len(scene.facts) <= 3
        assert seen(scene.image) == {f.kind: f.number for f in scene.facts}


def test_every_fact_has_one_sentence_in_each_wording_and_readings_are_unambiguous():
    assert len(FACTS) == 36
    assert len(READINGS) == 36 * 8
    assert sentence(RED, "own") == "two red circles."
    assert sentence(RED, "expert") == "a pair of crimson discs."
    assert sentence(Fact(3, "green", "square"), "expert") == "a trio of emerald boxes."
    assert sentence(BLUE, "expert") == "a single azure box."
    assert READINGS["two crimson circles."] == RED


@pytest.mark.parametrize(
    "text", ["", " ", "a. b.", "a. b", " a.  b. ", "..", "a", "two red circles. one box.", "a.\nb."]
)
def test_sentences_joined_are_the_text(text):
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("said", "reward", "correct"),
    [
        ("two red circles. one blue square.", 1.0, True), ("a single azure box. a pair of crimson discs.", 1.0, True),
        ("two red circles.", 0.5, False), ("two red circles. one blue circle.", 0.5, False),
        ("two red circles. two red circles.", 0.5, False), ("two red circles. one blue square. one red box.", 2 / 3, False),
        ("", 0.0, False), ("one red circle.", 0.0, False), ("two red circles. one blue square", 0.5, False),
        ("two red circle. one blue square.", 0.5, False), ("two red circles. one blue square. ", 1.0, True),
    ],
)  # fmt: skip
def test_verifier(task, said, reward, correct):
    score = task.score(of(RED, BLUE), NO_IDS, said)
    assert score.reward == pytest.approx(reward)
    assert score.correct == correct


def test_references_answers_and_splits(task):
    for p in task.train + task.heldout:
        assert task.score(p, NO_IDS, p.answer)[:2] == (1.0, True)
        assert task.score(p, NO_IDS, p.reference)[:2] == (1.0, True)
    assert all(place(p.id) >= 0.2 for p in task.train)
    assert all(place(p.id) < 0.2 for p in task.heldout)
    assert [p.id for p in Shapes(0, prompts=40, heldout=20).train] == [p.id for p in task.train]
    assert all(p.reference == p.answer for p in Shapes(0, prompts=5, heldout=1, wording="own").train)
    assert set(task.train[0].reference.split()).isdisjoint(COLOURS)


def test_the_expert_leaves_what_is_right(task):
    parts = task.revise(of(RED, BLUE), "one blue square. two red circles.")
    assert parts == [
        ("one blue square.", 4, "correct", "one blue square."),
        (" two red circles.", 4, "correct", " two red circles."),
    ]
    assert task.revise(of(RED), "") == []


def test_the_expert_corrects_as_little_as_possible(task):
    parts = task.revise(of(RED, BLUE, GOLD), "two red circles. two blue squares. three yellow squares.")
    assert [p.score for p in parts] == [4, 1, 1]
    assert [p.error for p in parts] == ["correct", "image_recognition_error", "image_recognition_error"]
    assert [p.rewrite for p in parts] == ["two red circles.", " a single azure box.", " a trio of golden wedges."]


def test_the_expert_adds_leaves_out_and_names_errors_of_language(task):
    parts = task.revise(of(RED, BLUE), "green. two red circles. two red circles. one red square.")
    assert [p.error for p in parts] == [
        "language_comprehension_error", "correct", "language_comprehension_error", "image_recognition_error",
    ]  # fmt: skip
    assert "".join(p.rewrite for p in parts) == " two red circles. a single azure box."
    assert task.revise(of(RED, BLUE), "two red circles.")[1:] == [("", 4, "correct", " a single azure box.")]
    own = Shapes(0, prompts=1, heldout=1, wording="own")
    assert own.revise(of(RED), "one red circle.")[0].rewrite == "two red circles."


def test_revisions_are_always_right(task):
    rng = numpy_generator(1, "test")
    texts = [*READINGS, "nonsense.", "one red circle"]
    for _ in range(300):
        prompt = task.prompt(draw(rng))
        said = [texts[int(i)] for i in rng.integers(0, len(texts), int(rng.integers(1, 5)))]
        said[0] = prompt.answer if rng.random() < 0.5 else said[0]
        text = " ".join(said)
        parts = task.revise(prompt, text)
        assert "".join(p.sentence for p in parts) == text
        revised = "".join(p.rewrite for p in parts)
        assert task.score(prompt, NO_IDS, revised)[:2] == (1.0, True), (text, revised)
        right = verdicts(shapes.facts_of(prompt), sentences(text))
        assert [p.score for p in parts if p.sentence] == [4 if ok else 1 for ok in right]
        assert all((p.error == "correct") == (p.score == 4) for p in parts)
        if task.score(prompt, NO_IDS, text).correct:
            assert revised == text


def test_closest_takes_the_most_alike_each_once():
    assert closest([Fact(2, "blue", "square"), Fact(2, "red", "square"), None], [RED, BLUE]) == [1, 0, None]
    assert closest([None], [RED]) == [0]
    assert closest([], [RED]) == []
    assert closest([RED], []) == [None]


def test_protocols_and_settings(task):
    assert isinstance(task, MakesPolicy)
    assert isinstance(task, Probes)
    assert isinstance(task, Revises)
    assert len(load_task("shapes:prompts=3,heldout=2,wording=own").train) == 3
    for bad, told in (
        ("prompts=0", "above 0"),
        ("noise=2", "share"),
        ("expert=-1", "share"),
        ("wording=x", "own or exp"),
    ):
        with pytest.raises(InputError, match=told):
            load_task(f"shapes:{bad}")


def test_a_base_is_trained_once_and_reads_the_tasks_words(task, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path))
    monkeypatch.setattr(shapes, "STEPS", 2)
    monkeypatch.setattr(shapes, "PROBED", 8)
    policy = task.make_policy(0)
    assert "training the base policy" in capsys.readouterr().err
    again = task.make_policy(0)
    assert "training" not in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(policy.module.parameters(), again.module.parameters(), strict=True))
    for text in READINGS:
        ids = policy.tokenizer.encode(text)
        assert policy.tokenizer.unk_token_id not in ids
        assert policy.decode(np.array(ids)) == text
    prompt = task.train[0]
    pixels = policy.media(prompt)["pixel_values"][0].permute(1, 2, 0)
    assert torch.equal(pixels, torch.tensor(prompt.media["images"][0]).float() / 127.5 - 1)
    probe = task.probe(policy)
    assert probe.keys() == {"hallucination", "coverage", "expert"}
    assert all(0 <= v <= 1 for v in probe.values())
