"""Reports on answers: copies that are not exact, items that teach nothing, and files of them, written and read."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anypolicy.cli.app import main
from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.tasks.language.base import Revision
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.revisions import aligned, revised, spaced, unusable, with_report, write_images


def said(sentence, rewrite=None, score=4, error="correct"):
    return Revision(sentence, score, error, sentence if rewrite is None else rewrite)


# --- alignment -------------------------------------------------------------------------------------------------------
@given(st.lists(st.text("ab .\n", max_size=5)))
def test_spaces_go_to_the_later_piece_and_nothing_is_lost(pieces):
    out = spaced(pieces)
    assert "".join(out) == "".join(pieces) or not "".join(pieces).strip()
    assert len(out) == len(pieces)
    last = max((i for i, piece in enumerate(out) if piece), default=0)
    assert all(piece == piece.rstrip() for piece in out[:last])


def test_an_exact_report_is_itself_with_the_spaces_in_front():
    report = [said("A cat. "), said("It sits. ", "It lies. ", 1), said("", "It purrs.")]
    out = aligned("A cat. It sits. ", report)
    assert [r.sentence for r in out] == ["A cat.", " It sits. ", ""]
    assert [r.rewrite for r in out] == ["A cat.", " It lies.", " It purrs."]


TEXT = 'There is a "red" car.\n\nThe dog  runs fast. Two birds sit on it.'
COPIES = ("There is a red car.", "the dog runs fast.", "Two birds sit on it.")


def test_copies_take_the_answers_own_words():
    report = [
        said(COPIES[0], "There is a blue car.", 1),
        said(COPIES[1]),
        said("", "It is wet."),
        said(COPIES[2], "", 2),
    ]
    out = aligned(TEXT, report)
    assert "".join(r.sentence for r in out) == TEXT
    assert [r.sentence for r in out] == [
        'There is a "red" car.',
        "\n\nThe dog  runs fast.",
        "",
        " Two birds sit on it.",
    ]
    assert revised(out) == "There is a blue car.\n\nThe dog  runs fast. It is wet."
    assert [r.score for r in out] == [1, 4, 4, 2]


def test_without_the_first_sentence_the_second_begins_the_answer():
    out = aligned(TEXT, [said(COPIES[0], "", 1), said(COPIES[1]), said(COPIES[2])])
    assert revised(out) == "The dog  runs fast. Two birds sit on it."


WORDS = st.lists(st.sampled_from(["red", "dog", "sits", "blue", "two", "on", "car"]), min_size=2, max_size=6)


@settings(max_examples=200)
@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(st.sampled_from([" ", "  ", "\n"]), min_size=6, max_size=6))
def test_trimmed_copies_are_always_found(sentences, gaps):
    sentences = [" ".join(words) + f" {i}." for i, words in enumerate(sentences)]
    text = "".join(s + gap for s, gap in zip(sentences, gaps, strict=False)).rstrip()
    out = aligned(text, [said(s, f"new {i}.") for i, s in enumerate(sentences)])
    assert "".join(r.sentence for r in out) == text
    assert [r.sentence.strip() for r in out] == sentences
    assert revised(out).split() == " ".join(f"new {i}." for i in range(len(sentences))).split()


@pytest.mark.parametrize(
    "report",
    [
        [said("Something else stands here, quite another text.")],
        [said(COPIES[0]), said(COPIES[2])],
        [said(COPIES[1]), said(COPIES[0]), said(COPIES[2])],
        [said(c) for c in (*COPIES, "And one that never was.")],
        [said("", "Added.")],
    ],
)
def test_copies_that_do_not_stand_there(report):
    with pytest.raises(ValueError, match="sentence"):
        aligned(TEXT, report)


# --- what teaches nothing --------------------------------------------------------------------------------------------
def test_items_that_teach_nothing():
    def why(generated, report=None, reference="The reference.", words=True):
        return unusable(generated, reference, report, words=words)

    assert why("A cat. It sits.") is None
    assert why(" \n") == "empty answer"
    assert why("It sits. A cat. It sits.") == "repeated last sentence"
    assert why("It sits. A cat. It sits.", words=False) is None
    assert why("cat " * 30 + "dog") is None
    assert why("no " * 30 + "no") == "last word more than 30 times"
    assert why("no " * 30) is None
    assert why("The  reference.") == "equal to the reference"
    assert why("A cat.", []) == why("A cat.", [said("A dog.")]) == "empty or invalid report"
    assert why("A cat.", [said("A cat.", "")]) == "empty revision"


# --- files -----------------------------------------------------------------------------------------------------------
ROW = {
    "prompt": "What is there?", "reference": "A blue car and a dog.", "generated": TEXT,
    "report": [
        {"sentence": COPIES[0], "score": 1, "error": "image_recognition_error", "rewrite": "There is a blue car."},
        {"sentence": COPIES[1], "score": None, "error": None, "rewrite": None},
        {"sentence": COPIES[2], "score": 3, "error": "language_comprehension_error", "rewrite": ""},
    ],
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_a_file_of_items(tmp_path):
    rows = [ROW | {"prompt": f"What is there? {n}"} for n in range(30)]
    path = write(tmp_path / "r.jsonl", *rows, ROW | {"prompt": "What is there? 0", "truncated": True})
    task = load_task(f"{path}:heldout=0.3")
    assert len(task.train) + len(task.heldout) == 31
    names = [{p.messages[0]["content"] for p in side} for side in (task.train, task.heldout)]
    assert not names[0] & names[1]
    p = task.train[0]
    assert p.reference == ROW["reference"]
    assert [r.score for r in p.info["report"]] == [1, 4, 3]
    assert p.info["responses"] == [ROW["reference"], "There is a blue car.\n\nThe dog  runs fast.", TEXT]
    assert p.info["scores"] == [1.0, 1.0, 0.0]
    assert sum(p.info["truncated"] for p in (*task.train, *task.heldout)) == 1
    answers = load_task(f"{path}:heldout=0.3,use=answers")
    assert [p.reference for p in answers.train[:2]] == p.info["responses"][:2]
    assert len(answers.train) == 2 * len(task.train)
    assert {p.id.partition("/")[0] for p in answers.train} == {p.id.partition("/")[0] for p in task.train}


def test_an_item_that_needs_no_revision_has_two_answers():
    asked = Prompt("p", tokens=(0,), reference=(1, 2))
    p = with_report(asked, "1 3", [said("1 "), said("3")], truncated=False)
    assert p.info["responses"] == [(1, 2), (1, 3)]
    assert p.info["scores"] == [1.0, 0.0]


def changed(**new):
    return ROW | new


def sentence(**new):
    return ROW | {"report": [ROW["report"][0] | new, *ROW["report"][1:]]}


def without(row, key):
    return {k: v for k, v in row.items() if k != key}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (changed(report=[]), "line 2.*no 'report' yet"),
        (changed(report=None), "line 2.*no 'report' yet"),
        (changed(report=["a"]), "line 2, sentence 1.*write an object"),
        (changed(report=[without(ROW["report"][0], "score")]), "line 2, sentence 1.*score"),
        (sentence(score=5), "line 2, sentence 1.*'score' is 5"),
        (sentence(score=True), "'score' is True"),
        (sentence(error="wrong"), "line 2, sentence 1.*'error' is 'wrong'"),
        (sentence(rewrite=3), "'rewrite' must be text"),
        (sentence(sentence="Nothing of the kind, at all."), "line 2.*invalid.*sentence 1"),
        (changed(reference=TEXT), "line 2.*equal to the reference"),
        (changed(reference=""), "line 2.*'reference' is ''"),
        (changed(generated=" "), "line 2.*'generated' is ' '"),
        (changed(report=[r | {"rewrite": ""} for r in ROW["report"]]), "line 2.*empty revision"),
        (changed(truncated="no"), "line 2.*'truncated'"),
        (changed(images=["none.png"]), r"line 2.*no image .*none\.png"),
        (changed(images=[3]), "line 2.*image is 3"),
        (changed(prompt=[1, 2]), "line 2.*ids with spaces"),
        (without(ROW, "prompt"), "line 2.*'prompt' is None"),
    ],
)
def test_bad_lines_are_named(tmp_path, row, match):
    with pytest.raises(InputError, match=match):
        load_task(write(tmp_path / "r.jsonl", ROW, row))


def test_images_stand_beside_the_file(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5, 4, 3)).astype(np.uint8), rng.standard_normal((2, 3)).astype(np.float32)]
    (tmp_path / "i").mkdir()
    names = write_images(tmp_path / "i", "a/b c", pictures)
    assert names == ["a_b_c-0.png", "a_b_c-1.npy"]
    shown = ROW | {"images": [f"i/{n}" for n in names]}
    other = ROW | {"images": ["i/a_b_c-0.png"]}
    task = load_task(write(tmp_path / "r.jsonl", shown, other, ROW) + ":heldout=0")
    for a, b in zip(task.train[0].media["images"], pictures, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert len({p.id.partition("/")[0] for p in task.train}) == 3
    assert task.train[2].media == {}


# --- the command -----------------------------------------------------------------------------------------------------
def test_revise_then_fine_tune_then_prefer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["revise", "--task", "slots:items=30,heldout=8,wording=2", "--out", "r.jsonl", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "30 items in r.jsonl" in said
    assert "r.jsonl:use=answers,task='slots:items=30,heldout=8,wording=2'" in said
    assert len(list((tmp_path / "r-images").glob("*.npy"))) == 30
    source = "r.jsonl:task='slots:items=30,heldout=8,wording=2'"
    common = {"quiet": True, "trackers": (), "prompts": 8, "threads": 1}
    opa = training.train("sft", task=f"{source},use=answers", steps=12, lr=1e-3, out="opa", **common)
    assert len(opa.evaluations()) > 1
    assert "probe/wrong" in opa.evaluations()[0]
    assert opa.evaluations()[-1]["eval/logp"] > opa.evaluations()[0]["eval/logp"]
    run = training.train("opa-dpo", task=source, policy="opa/policy", steps=4, lr=1e-3, out="dpo", **common)
    rows = [r for r in run.rows if "event" not in r]
    assert rows[0]["opa/corrected_logp_ref"] > -4
    assert rows[-1]["pairs/margin"] > rows[0]["pairs/margin"] == pytest.approx(0, abs=1e-5)
    assert run.evaluations()[0]["eval/kl"] == pytest.approx(0, abs=1e-6)
    part = training.train(
        "opa-dpo", task=source, policy="opa/policy", steps=2, lr=1e-3, out="part", checkpoint_every=1, **common
    )
    again = training.resume(part.path, steps=4, quiet=True)
    assert [r for r in again.rows if "event" not in r] == rows
    for a, b in zip(run.policy.module.parameters(), again.policy.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_an_expert_the_reports_stay_empty(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Say {n}.", "response": f"It is {n}."} for n in range(6)]
    asked = write(tmp_path / "asked.jsonl", *rows)
    command = [
        "revise",
        "--task",
        asked,
        "--policy",
        "transformer:layers=1,width=16,heads=2",
        "--max-tokens",
        "8",
        "--quiet",
    ]
    assert main(command) == 2
    assert "--no-expert" in capsys.readouterr().err
    assert main([*command, "--no-expert", "--prompts", "3"]) == 0
    assert "fill in" in capsys.readouterr().out
    lines = [json.loads(x) for x in (tmp_path / "revisions.jsonl").read_text().splitlines()]
    assert all(x["report"] == [] and x["reference"].startswith("It is") and x["generated"] for x in lines)
    assert main(["train", "opa-dpo", "--task", "revisions.jsonl"]) == 2
    assert "line 1" in capsys.readouterr().err
    assert main([*command, "--no-expert"]) == 2
    assert "it exists" in capsys.readouterr().err
    for x in lines:
        x["report"] = [{"sentence": x["generated"], "score": 1, "error": "correct", "rewrite": "It is 7."}]
    filled = write(tmp_path / "filled.jsonl", *lines)
    assert len(load_task(filled + ":heldout=0").train) == len(lines)


def test_a_vision_language_policy(tmp_path, monkeypatch):
    from anypolicy.tasks.language import shapes

    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shapes, "STEPS", 1)
    monkeypatch.chdir(tmp_path)
    policy = ["--policy", "vlm:layers=1,width=16,heads=2,context=200,image=16", "--quiet"]
    assert (
        main(["revise", "--task", "shapes:prompts=8,heldout=2", "--max-tokens", "8", "--out", "r.jsonl", *policy]) == 0
    )
    lines = [json.loads(x) for x in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(list((tmp_path / "r-images").glob("*.png"))) == len(lines) > 4
    assert all("".join(r["sentence"] for r in x["report"]) == x["generated"] for x in lines)
    command = [
        "--steps",
        "1",
        "--prompts",
        "4",
        "--eval-every",
        "0",
        "--max-tokens",
        "64",
        "--trackers",
        "--out",
        "run",
        *policy,
    ]
    assert main(["train", "opa-dpo", "--task", "r.jsonl", *command]) == 0
    [row] = [
        r for r in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "event" not in r
    ]
    assert row["loss/reference_image"] == pytest.approx(0.2 * np.log(2), abs=1e-5)
    assert row["loss/reference"] == row["loss/reference_anchor"] == pytest.approx(np.log(2), abs=1e-5)
    assert {"opa/masked_reference", "opa/masked_revised", "opa/corrected_logp_ref"} <= set(row)


def test_what_cannot_be_revised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, said in (
        (["--task", "tiny-add"], "play the expert"),
        (["--task", "tiny-add", "--no-expert"], "no reference answer"),
        (["--task", "slots", "--out", "a.txt"], ".jsonl"),
        (["--task", "slots", "--prompts", "0"], "above 0"),
    ):
        assert main(["revise", *command, "--quiet"]) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
