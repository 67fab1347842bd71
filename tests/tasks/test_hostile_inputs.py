"""What must not end a run or change it unseen: odd responses, odd files, odd settings."""

import json
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from anypolicy.data.batch import from_groups
from anypolicy.data.records import Group, Trajectory
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.table import TablePolicy
from anypolicy.tasks.arguments import call, parse
from anypolicy.tasks.language.base import Score
from anypolicy.tasks.language.load import load_task
from anypolicy.tasks.language.preferences import load_pairs
from anypolicy.tasks.language.tabular_lock import TabularLock
from anypolicy.tasks.language.verifiers import verify

NOTHING = np.zeros(0, np.int64)
GOOD = '{"prompt": "a", "answer": "b"}\n'


def test_a_comparison_that_takes_too_long_is_wrong_and_the_next_one_works():
    slow = "+".join(rf"\cos({2 * k}\pi/59)" for k in range(1, 30))
    assert verify("numeric", [(f"${slow}$", "-1/2"), ("4", "4")]) == [Score(0.0, False, "timeout"), Score(1.0, True)]


def test_a_pattern_that_takes_for_ever_is_wrong_and_the_next_one_works():
    told = verify("regex", [("a" * 40 + "!", "(a+)+b"), ("aab", "(a+)+b")])
    assert told == [Score(0.0, False, "timeout"), Score(1.0, True)]


def test_numeric_works_in_threads():
    out = {}

    def ask(i):
        out[i] = verify("numeric", [(str(i), str(i % 3))])[0].correct

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert out == {i: i < 3 for i in range(6)}


@pytest.mark.parametrize(
    ("name", "response"),
    [("prime_factorization", "I do not know"), ("boxnet", "42"), ("coin_flip", "1e400"), ("game_of_life", "{}")],
)
def test_a_response_the_verifier_cannot_read_scores_0(name, response):
    task = load_task(f"reasoning-gym/{name}:size=12")
    with pytest.raises((ValueError, TypeError, OverflowError, KeyError)):
        task.dataset.score_answer(answer=response, entry=task.entries[task.train[0].id])
    assert task.score(task.train[0], NOTHING, response)[:2] == (0.0, False)


def test_the_global_generator_neither_decides_the_problems_nor_is_moved():
    spec, ids = "reasoning-gym/list_functions:size=40", []
    for state in (1, 2):
        random.seed(state)
        before = random.getstate()
        ids.append([p.id for p in load_task(spec, seed=3).train])
        assert random.getstate() == before
    assert ids[0] == ids[1]


def test_problems_that_follow_the_hash_seed_need_one(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(InputError, match="PYTHONHASHSEED=0"):
        load_task("reasoning-gym/ransom_note:size=20")
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert load_task("reasoning-gym/ransom_note:size=20").train


def test_problems_are_the_same_in_another_process_with_another_hash_seed():
    spec = "reasoning-gym/chain_sum:size=30"
    code = (
        f"from anypolicy.tasks.language.load import load_task; print([p.id for p in load_task({spec!r}, seed=4).train])"
    )
    path = [p for p in sys.path if p]
    run = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"]
    said = [
        subprocess.run(run, env={"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True) for s in ("1", "2")
    ]
    assert said[0].stdout == said[1].stdout == f"{[p.id for p in load_task(spec, seed=4).train]}\n"


def test_shots_need_answers():
    with pytest.raises(InputError, match="no answers to show"):
        load_task("reasoning-gym/graph_color:size=20,shots=1")


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tiny-add:prompts=0", "prompts: got 0"), ("tiny-add:prompts=x", "whole number"),
        ("tiny-add:heldout=-3", "heldout: got -3"), ("tiny-add:prompts=2.5", "whole number"),
        ("tiny-add:base_accuracy=x", "number"), ("tabular-lock:vocabulary=1", "vocabulary: got 1"),
        ("tabular-lock:length=2.5", "whole number"), ("tabular-lock:bias=x", "number"),
        ("tabular-lock:sigma=.nan", "finite"), ("tabular-lock:sigma=-1", "0 or more"),
        ("tabular-lock:recorded=-1", "0 or more"), ("reasoning-gym/chain_sum:min_terms=2001-01-01", "quotes"),
        ("tabular-lock:prompts=", "whole number"), ("tabular-lock:prompts=true", "whole number"),
        ("tabular-lock:prompts=4,prompts=8", "twice"), ("tabular-lock:start=grded", "did you mean 'graded'"),
        ("reasoning-gym/chain_sum:seed=3", "settings"), ("reasoning-gym/chain_sum:self=3", "settings"),
        ("reasoning-gym/chain_sum:shots=-1", "shots: got -1"), ("reasoning-gym/chain_sum:size=1", "raise it"),
        ("reasoning-gym/chain_sum:graded=maybe", "true or false"), ("reasoning-gym/chain_sum:heldout=x", "number"),
        ("reasoning-gym/chain_sum:instruction=5", "quotes"), ("reasoning-gym/chain_sum:instruction=A: b", "quotes"),
    ],
)  # fmt: skip
def test_settings_of_the_wrong_kind(spec, match):
    with pytest.raises(InputError, match=match):
        load_task(spec)


def test_sizes_beyond_memory_are_one_error():
    def big(*, error: str) -> None:
        raise {"numpy": MemoryError("no room"), "torch": RuntimeError("you can't allocate memory")}.get(
            error
        ) or RuntimeError("x")

    for error in ("numpy", "torch"):
        with pytest.raises(InputError, match="more memory than there is"):
            call(big, "big", (), {"error": error})
    with pytest.raises(RuntimeError, match="x"):
        call(big, "big", (), {"error": "another"})


def test_values_are_read_one_by_one():
    assert parse("a=Don't guess,b=\"x, y\",c=train[:10%],d=p=q") == {
        "a": "Don't guess", "b": "x, y", "c": "train[:10%]", "d": "p=q",
    }  # fmt: skip
    start = load_task("tabular-lock:low=1e-3,high=1e-3,sigma=0").start
    assert float(start.max()) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (b'{"prompt": "\xe9", "answer": "x"}\n', "line 2.*UTF-8"), (b'{"prompt": 5, "answer": "x"}\n', "line 2.*messages"),
        (b'{"prompt": [{"role": "user", "content": null}], "answer": "x"}\n', "line 2.*are text"),
        (b'{"prompt": "q", "answer": NaN}\n', "line 2.*nan"), (b'{"prompt": "q", "answer": {"x": 1}}\n', "line 2.*as text"),
    ],
)  # fmt: skip
def test_odd_lines(tmp_path, row, match):
    (tmp_path / "p.jsonl").write_bytes(GOOD.encode() + row)
    with pytest.raises(InputError, match=match):
        load_task(f"{tmp_path / 'p.jsonl'}:instruction=Think.")


@pytest.mark.parametrize(
    "row", ['{"prompt": "q", "answer": -%s}', '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": %s}']
)
def test_whole_numbers_beyond_the_range_of_floating_point(tmp_path, row):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "p", "answer": "b", "chosen": "a", "rejected": "b"}\n' + row % ("9" * 400)
    )
    with pytest.raises(InputError, match=r"line 2.*at most 308 digits"):
        (load_pairs if "chosen" in row else load_task)(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.jsonl").write_text(GOOD + json.dumps({"prompt": "9" * 400, "answer": 10**300}))
    task = load_task(str(tmp_path / "p.jsonl"))
    assert {p.answer for p in [*task.train, *task.heldout]} == {"b", str(10**300)}


@pytest.mark.parametrize("pattern", ["(a", "a{99999999999999999999}", "(" * 5000 + ")" * 5000], ids=len)
def test_patterns_that_cannot_be_compiled(tmp_path, pattern):
    (tmp_path / "p.jsonl").write_text(GOOD + json.dumps({"prompt": "q", "answer": pattern}))
    with pytest.raises(InputError, match=r"line 2.*no regular expression"):
        load_task(f"{tmp_path / 'p.jsonl'}:verifier=regex")


def test_line_separators_inside_a_text_and_a_byte_order_mark(tmp_path):
    row = json.dumps({"prompt": "one\u2028two\x85three", "answer": "1", "level": 3}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode() + row.encode())
    task = load_task(str(tmp_path / "p.jsonl"))
    [found] = [p for p in [*task.train, *task.heldout] if p.answer == "1"]
    assert found.messages[0]["content"] == "one\u2028two\x85three"
    assert found.info == {"level": 3}


def test_an_instruction_moves_no_problem_to_the_other_side(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": "1"}) + "\n" for i in range(200)))
    plain, told = load_task(str(file)), load_task(f"{file}:instruction=Think.")
    assert [p.id for p in plain.heldout] == [p.id for p in told.heldout]
    assert all(p.messages[-1]["content"].endswith("\nThink.") for p in told.heldout)


def test_a_full_prefix_and_the_one_hot_hidden_state():
    task = TabularLock(0, prompts=4, length=3)
    policy = task.make_policy(0)
    requests = [Request(policy.encode(p), 2, prefix) for p, prefix in zip(task.train, [(), (1,), (1, 2), (1, 2, 3)])]
    answers = NativeEngine(policy).generate(requests, Sampling(3), torch.Generator().manual_seed(0))
    assert [s.response.tolist() for s, _ in answers[3]] == [[1, 2, 3]] * 2
    groups = [
        Group(p.id, p, [Trajectory(f"{p.id}/{i}", [s], reward=0.0) for i, (s, _) in enumerate(a)])
        for p, a in zip(task.train, answers, strict=True)
    ]
    batch = from_groups(groups)
    scores = policy.score(batch, 1.0, hidden=True)
    torch.testing.assert_close(scores.logp[batch.mask].detach(), batch.logp_old[batch.mask], rtol=0, atol=1e-6)
    assert scores.hidden.argmax(-1).tolist() == [[3 * n + i for i in range(3)] for n in range(4) for _ in range(2)]
    assert torch.equal(scores.hidden.sum(-1), torch.ones(8, 3))


def test_a_saved_table_is_loaded_again(tmp_path):
    policy = TablePolicy(torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    policy.save(tmp_path)
    again = TablePolicy.load(tmp_path)
    assert torch.equal(again.module.logits, policy.module.logits)
    assert again.dtype == torch.float64
    with pytest.raises(InputError, match=r"table\.safetensors"):
        TablePolicy.load(tmp_path / "none")
