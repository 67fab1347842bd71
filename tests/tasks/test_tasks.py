"""Tasks: verifiers, disjoint splits, the testbeds' starting points, and what cannot be loaded."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anypolicy.data.records import Prompt
from anypolicy.errors import InputError
from anypolicy.tasks.arguments import parse
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.reasoning_gym import extracted
from anypolicy.tasks.language.reverse_and_pick import (
    BASES,
    EQUALS,
    PICK,
    SHOWN,
    STEPS,
    WRONG,
    demonstration,
    response_ids,
)
from anypolicy.tasks.language.reverse_and_pick import EOS as RP_EOS
from anypolicy.tasks.language.reverse_and_pick import held_out as held_digits
from anypolicy.tasks.language.tabular_lock import TabularLock
from anypolicy.tasks.language.tiny_add import TinyAdd, answer_ids, held_out, prompt_ids
from anypolicy.tasks.language.verifiers import verify
from anypolicy.tasks.split import split


@given(st.lists(st.text(max_size=6), max_size=40), st.floats(0, 0.9))
def test_splits_are_disjoint_and_complete(texts, share):
    train, held = split(texts, lambda t: t, share)
    assert not set(train) & set(held)
    assert set(train) | set(held) == set(texts)
    assert len(train) + len(held) == len(set(texts))
    if share and len(set(texts)) >= 2:
        assert train
        assert held


@given(st.sets(st.text(max_size=6), min_size=12, max_size=40), st.integers(2, 11))
def test_the_side_does_not_depend_on_what_else_is_there(texts, n):
    whole = [set(x) for x in split(texts, lambda t: t, 0.5)]
    part = [set(x) for x in split(sorted(texts)[:n], lambda t: t, 0.5)]
    if part[0] & whole[1] or part[1] & whole[0]:
        assert 1 in (len(part[0]), len(part[1]))


@pytest.mark.parametrize(
    ("name", "response", "answer", "right"),
    [
        ("exact", " a  b\n", "a b", True), ("exact", "ab", "a b", False),
        ("numeric", "so it is $\\frac{1}{2}$", "0.5", True), ("numeric", "0.4", "1/2", False),
        ("numeric", "no number", "3", False), ("regex", " 42 ", r"\d+", True), ("regex", "x42", r"\d+", False),
    ],
)  # fmt: skip
def test_verifiers(name, response, answer, right):
    assert verify(name, [(response, answer)]) == [Score(float(right), right)]


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def test_jsonl(tmp_path):
    rows = [{"prompt": f"{i} + 1 =", "answer": i + 1} for i in range(40)]
    rows.append({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "answer": "7"})
    task = load_task(write(tmp_path / "p.jsonl", *rows) + ":verifier=numeric,instruction='One, number',max_tokens=5")
    assert len(task.train) + len(task.heldout) == 41
    assert not {p.id for p in task.train} & {p.id for p in task.heldout}
    prompt = task.train[0]
    assert prompt.messages[-1]["content"].endswith("\nOne, number")
    assert task.score(prompt, np.zeros(0), f"It is {prompt.answer}")[:2] == (1.0, True)
    assert task.max_tokens == 5


GOOD = {"prompt": "a", "answer": "b"}


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([GOOD, '{"prompt": "x", '], "line 2.*not JSON"),
        ([GOOD, {"prompt": "x"}], "line 2.*no 'answer'"),
        ([GOOD, {"promt": "x", "answer": "y"}], "line 2.*no 'prompt'"),
        ([GOOD, "[1]"], "line 2.*object"),
        ([GOOD], "at least 2"),
        ([GOOD, {"prompt": "a", "answer": "c"}, {"prompt": "d", "answer": "e"}], "the same prompt has answer 'b'"),
        ([GOOD, {"prompt": [{"content": "x"}], "answer": "y"}], "role and content"),
    ],
)
def test_broken_jsonl(tmp_path, rows, match):
    with pytest.raises(InputError, match=match):
        load_task(write(tmp_path / "p.jsonl", *rows))


def test_more_broken_files(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    for spec, match in (
        (str(tmp_path / "empty.jsonl"), "empty"),
        (str(tmp_path / "none.jsonl"), "no such file"),
        (
            write(tmp_path / "r.jsonl", GOOD, {"prompt": "x", "answer": "("}) + ":verifier=regex",
            "no regular expression",
        ),
        (write(tmp_path / "q.jsonl", GOOD, GOOD) + ":verifier=exakt", "did you mean 'exact'"),
    ):
        with pytest.raises(InputError, match=match):
            load_task(spec)


def test_data_sets_of_the_hub_from_a_local_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", *({"question": f"q{i}", "answer": str(i)} for i in range(10)))
    task = load_task(f"hf/{tmp_path / 'data'}:prompt=question")
    assert {p.answer for p in [*task.train, *task.heldout]} == {str(i) for i in range(10)}
    with pytest.raises(InputError, match="cannot be loaded"):
        load_task("hf/no-such-owner/no-such-data")


class Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_nothing_in_a_data_folder_is_unpickled(tmp_path, monkeypatch):
    """Readers of datasets have names that are tried before folders and the hub; one of them read pickle until 5.2."""
    monkeypatch.chdir(tmp_path)
    for folder in (".", "data", "pandas"):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "train.pkl").write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    (Path("data") / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.pkl\n---\n")
    for name in ("data", "./pandas"):
        with pytest.raises(InputError, match="cannot be loaded"):
            load_task(f"hf/{name}")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **b: pytest.fail("a reader was called"))
    for name in ("pandas", "json", "parquet"):
        with pytest.raises(InputError, match=rf"reader of files of this name.*hf/\./{name}"):
            load_task(f"hf/{name}")
    assert not (tmp_path / "ran").exists()
    pickle.loads(Path("train.pkl").read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tiny-ad", "did you mean 'tiny-add'"), ("reasoning-gym/chain_sun", "did you mean 'chain_sum'"),
        ("reasoning-gym/chain_sum:min_term=2", "did you mean 'min_terms'"), ("tabular-lock:lenght=2", "did you mean 'length'"),
        ("reasoning-gym/chain_sum:min_terms=4,max_terms=2", "do not fit"), ("tabular-lock:length", "key=value"),
        ("tabular-lock:start=hard", "graded, confident or mixture"), ("tabular-lock:prompts=0", "larger"),
    ],
)  # fmt: skip
def test_unknown_names_and_settings(spec, match):
    with pytest.raises(InputError, match=match):
        load_task(spec)


def test_settings_are_yaml_and_quotes_hold_commas():
    assert parse("a=1,b='x, y',c=true,d=text here.") == {"a": 1, "b": "x, y", "c": True, "d": "text here."}


def test_reasoning_gym():
    spec = (
        "reasoning-gym/chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=2,size=400,extract=last-number,shots=2"
    )
    task, other = load_task(spec, seed=1), load_task(spec, seed=2)
    assert not {p.id for p in task.train} & {p.id for p in other.heldout}
    prompt = task.heldout[0]
    assert len(prompt.messages) == 5
    assert task.score(prompt, np.zeros(0), f"3 + 4 = {prompt.answer}")[:2] == (1.0, True)
    assert not task.score(prompt, np.zeros(0), "none").correct
    assert [p.id for p in load_task(spec, seed=1).train] == [p.id for p in task.train]


@pytest.mark.parametrize(
    ("how", "answer"),
    [("text", "x 1,204\ny -3.5"), ("first-line", "x 1,204"), ("last-number", "-3.5"), ("tag", None)],
)
def test_extraction(how, answer):
    assert extracted(" x 1,204\ny -3.5 ", how) == answer
    assert extracted("<answer>1</answer> <answer> 2 </answer>", "tag") == "2"


@pytest.mark.parametrize(
    ("settings", "hard", "want", "tolerance"),
    [
        ({"start": "confident", "prompts": 64, "length": 2, "sigma": 0.5, "bias": 4.0}, True, 0.0004, 0.0002),
        ({"start": "confident", "prompts": 64, "length": 2, "sigma": 0.5, "bias": 3.0}, True, 0.0017, 0.0005),
        ({"start": "graded", "prompts": 64, "length": 8, "low": 1.0, "high": 4.0}, False, 0.031, 0.01),
        ({"start": "mixture", "prompts": 1024, "length": 2}, False, 0.292, 0.005),
    ],
)
def test_the_locks_start_where_their_specification_says(settings, hard, want, tolerance):
    found = []
    for seed in range(5):
        task = TabularLock(seed, **settings)
        found.append(task.probe(task.make_policy(seed))["success_hard" if hard else "success"])
    assert np.mean(found) == pytest.approx(want, abs=tolerance)


def test_lock_verifier_and_exact_success_agree():
    task = TabularLock(0, prompts=4, length=2)
    policy = task.make_policy(0)
    n = 20000
    p = policy.module.logits.detach().softmax(-1)[1]
    draws = torch.stack(
        [torch.multinomial(p[i], n, True, generator=torch.Generator().manual_seed(i)) for i in (0, 1)], 1
    )
    share = np.mean([task.score(task.train[1], d, "").correct for d in draws.numpy()])
    exact = float(task.success(policy)[1])
    assert abs(share - exact) < 4 * (exact * (1 - exact) / n) ** 0.5


def test_tiny_add():
    assert prompt_ids(7, 130) == (0, 0, 7, 10, 1, 3, 0, 11)
    assert answer_ids(7, 130) == (7, 3, 1, 0, 12)
    task = TinyAdd(0, prompts=90, heldout=60)
    pairs = lambda prompts: {tuple(map(int, p.id.split("+"))) for p in prompts}  # noqa: E731
    assert not pairs(task.train) & pairs(task.heldout)
    assert all(held_out(*p) for p in pairs(task.heldout))
    prompt = task.train[0]
    assert task.score(prompt, np.array(prompt.answer), "").correct
    assert not task.score(prompt, np.array(prompt.answer[:-1]), "").correct


def test_the_base_of_tiny_add_is_kept_and_the_same():
    task = TinyAdd(0, base_accuracy=0.02)
    one, two = task.make_policy(3), task.make_policy(3)
    for a, b in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sum(task.probe(one)[f"class_{k}"] for k in (1, 2, 3)) > 0


def test_references_of_the_testbeds():
    plain = TabularLock(0, prompts=64, length=6)
    assert all(p.reference is None for p in plain.train)
    lock = TabularLock(0, prompts=64, length=6, references=True, reference_accuracy=0.7)
    assert torch.equal(lock.start, plain.start)
    shown = torch.tensor([p.reference for p in lock.train])
    assert float((shown == lock.target).double().mean()) == pytest.approx(0.7, abs=0.06)
    policy = lock.make_policy(0)
    assert policy.encode_reference(lock.train[3]).tolist() == shown[3].tolist()
    exact = TabularLock(0, references=True)
    assert all(exact.score(p, np.array(p.reference), "").correct for p in exact.train)
    for wrong in (None, "1 2", (1, 2), (1, 2, 99)):
        with pytest.raises(InputError, match="reference"):
            exact.make_policy(0).encode_reference(Prompt("x", tokens=(0,), reference=wrong))
    plain = TinyAdd(0, prompts=300, heldout=3)
    add = TinyAdd(0, prompts=300, heldout=3, references=True, reference_accuracy=0.7)
    assert [p.answer for p in add.train] == [p.answer for p in plain.train]
    right = [p.reference == p.answer for p in add.train]
    assert np.mean(right) == pytest.approx(0.7, abs=0.08)
    assert {sum(a != b for a, b in zip(p.reference, p.answer, strict=True)) for p in add.train} == {0, 1}
    assert add.train[0].without_label().reference is None
    for task in (TabularLock, TinyAdd):
        with pytest.raises(InputError, match="reference_accuracy"):
            task(0, references=True, reference_accuracy=1.5)


def test_references_of_a_file(tmp_path):
    rows = [{"prompt": f"{i} + 1 =", "answer": i + 1, "shown": f"It is {i + 1}"} for i in range(8)]
    rows += [{"prompt": "a", "answer": "b", "shown": [5, 6]}, {"prompt": "c", "answer": "d"}]
    task = load_task(write(tmp_path / "p.jsonl", *rows) + ":reference=shown")
    by_answer = {p.answer: p for p in [*task.train, *task.heldout]}
    assert by_answer["3"].reference == "It is 3"
    assert by_answer["b"].reference == (5, 6)
    assert by_answer["d"].reference is None
    assert "shown" not in by_answer["3"].info
    assert load_task(str(tmp_path / "p.jsonl")).train[0].reference is None


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([GOOD, {"prompt": "c", "answer": "d"}], "no row has this field"),
        ([GOOD | {"shown": ""}, {"prompt": "c", "answer": "d"}], "'shown' is ''"),
        ([GOOD | {"shown": 4}, {"prompt": "c", "answer": "d"}], "'shown' is 4"),
        ([{"prompt": "c", "shown": "x"}, {"prompt": "d", "answer": "e"}], "line 2.*no 'shown'"),
    ],
)
def test_references_that_cannot_be_used(tmp_path, rows, match):
    with pytest.raises(InputError, match=match):
        load_task(write(tmp_path / "p.jsonl", *rows) + ":reference=shown")


def test_supervised_data_needs_no_settings(tmp_path):
    rows = [{"prompt": f"q{i}", "response": f"r{i}"} for i in range(10)]
    rows += [{"prompt": "q3", "response": "another"}, {"prompt": "q4", "response": "r4"}]
    task = load_task(write(tmp_path / "p.jsonl", *rows))
    every = [*task.train, *task.heldout]
    assert not task.verifies
    assert sorted(p.reference for p in every) == sorted(["another", *(f"r{i}" for i in range(10))])
    assert len({p.id for p in every}) == 11
    assert {p.answer for p in every} == {None}
    both = [[p.messages for p in side] for side in (task.train, task.heldout)]
    assert not [m for m in both[0] if m in both[1]]


def test_conversations_are_prompts_and_references(tmp_path):
    def turns(i):
        return [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": f"r{i}"}]  # fmt: skip

    path = write(tmp_path / "p.jsonl", *({"messages": turns(i)} for i in range(6)))
    task = load_task(path)
    assert sorted(p.reference for p in [*task.train, *task.heldout]) == [f"r{i}" for i in range(6)]
    assert [m["role"] for m in task.train[0].messages] == ["system", "user"]
    with_answers = load_task(write(tmp_path / "a.jsonl", *({"messages": turns(i), "answer": "r"} for i in range(6))))
    assert with_answers.verifies
    assert with_answers.train[0].reference.startswith("r")
    with pytest.raises(InputError, match="no 'prompt'"):
        load_task(write(tmp_path / "b.jsonl", *({"messages": turns(i)[:2], "answer": "r"} for i in range(6))))


def test_reverse_and_pick():
    task = load_task("reverse-and-pick:prompts=100,heldout=20,references=true", seed=1)
    prompts = [*task.train, *task.heldout]
    assert len({p.id for p in prompts}) == 120
    assert sum(p.info["hard"] for p in task.train) == 75
    prompt = next(p for p in task.train if len(p.id) == 7)
    digits = tuple(map(int, prompt.id))
    chain = digits[::-1]
    assert prompt.tokens == (*digits, EQUALS)
    assert prompt.answer == (chain[1], chain[3], chain[5])
    assert response_ids(chain) == (*chain, PICK, *prompt.answer, RP_EOS)
    right = {
        response_ids(chain): True, (PICK, *prompt.answer, RP_EOS): True, prompt.reference: True,
        (PICK, *prompt.answer): False, (*prompt.answer, RP_EOS): False, (PICK, PICK, *prompt.answer, RP_EOS): True,
        (PICK, *prompt.answer[:-1], (prompt.answer[-1] + 1) % 10, RP_EOS): False, (RP_EOS,): False,
    }  # fmt: skip
    for ids, correct in right.items():
        assert task.score(prompt, np.array(ids), "").correct is correct
    shown = task.answer_shown(prompt)
    assert shown.tokens == (*digits, SHOWN, *prompt.answer, EQUALS)
    wrong = np.array(response_ids(digits))
    assert task.ended_by_answer(prompt, wrong).tolist() == [*digits, PICK, *prompt.answer, RP_EOS]
    assert task.ended_by_answer(prompt, wrong[:4]).tolist() == [*digits[:4], PICK, *prompt.answer, RP_EOS]
    assert not len(task.ended_by_answer(prompt, np.array([PICK, 3, RP_EOS])))
    assert task.score(prompt, task.ended_by_answer(prompt, wrong), "").correct
    assert "steps" not in BASES["shown"]
    with pytest.raises(InputError, match="hard"):
        load_task("reverse-and-pick:hard=2")
    with pytest.raises(InputError, match="prompts"):
        load_task("reverse-and-pick:prompts=4001")


def test_prompts_of_reverse_and_pick_are_as_many_as_were_asked_for(monkeypatch):
    monkeypatch.setattr("anypolicy.tasks.language.reverse_and_pick.held_out", lambda digits: len(digits) > 3)
    with pytest.raises(InputError, match=r"prompts: got 9; there are \d different ones"):
        load_task("reverse-and-pick:prompts=9,hard=1.0")


def test_the_base_of_reverse_and_pick_is_sure_of_the_wrong_way():
    rng = np.random.default_rng(0)
    pairs = [demonstration(rng, BASES["shown"]) for _ in range(3000)]
    assert not any(held_digits(tuple(t for t in p if t < PICK)[:7]) for p, _ in pairs if SHOWN not in p)
    direct = [(p[:-1], r) for p, r in pairs if SHOWN not in p]
    hard = [r[: len(d)] == d for d, r in direct if len(d) > 4]
    assert np.mean(hard) > 0.99
    assert all(r[: len(d)] == d[::-1] for d, r in direct if len(d) < 5)
    seen = [(p[: p.index(SHOWN)], r) for p, r in pairs if SHOWN in p]
    assert 0.4 < len(seen) / len(pairs) < 0.6
    assert all(r[: len(d)] == d[::-1] for d, r in seen)
    staged = [demonstration(rng, BASES["staged"]) for _ in range(6000)]
    counts = {0.01: [], 0.12: [], 0.25: []}
    for p, r in staged:
        d = p[:-1] if p[0] != STEPS else p[1:-1]
        key = 0.12 if p[0] == STEPS else 0.25 if WRONG in p else 0.01
        d = d[: d.index(WRONG)] if WRONG in d else d
        if len(d) > 4:
            counts[key].append(r[: len(d)] == d[::-1] and d != d[::-1])
    for share, found in counts.items():
        assert np.mean(found) == pytest.approx(share, abs=0.04)
