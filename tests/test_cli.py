"""The command line as a user meets it, and everything they can get wrong."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import anypolicy
from anypolicy.cli.app import main

ROOT = Path(__file__).parents[1]

LOCK = ["--task", "tabular-lock", "--steps", "2", "--trackers"]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    (tmp_path / "fields.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "good.jsonl").write_text('{"prompt": "aaaa", "answer": "b"}\n{"prompt": "cccc", "answer": "d"}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "rewards.py").write_text(
        "def nan(prompt, responses): return [float('nan')] * len(responses)\n"
        "def short(prompt, responses): return [1.0]\n"
        "def raises(prompt, responses): return 1 / 0\n"
    )
    (tmp_path / "method.py").write_text("def f(: pass\n")
    return tmp_path


BAD = [
    (["train", "nrgpo", *LOCK], "method", "did you mean 'ngrpo'"),
    (["train", "grpo", "--task", "tabular-lok"], "task", "did you mean 'tabular-lock'"),
    (["train", "grpo+ngrpo.los", *LOCK], "stage", "did you mean 'loss'"),
    (["train", "ngrpo+sapo", *LOCK], "method", "ngrpo+sapo.loss"),
    (["train", "grpo", *LOCK, "--lrr", "1"], "", "--lr"),
    (["train", "grpo+ngrpo.advantage", *LOCK, "--ngrpo.clip-low", "0.1"], "ngrpo.clip_low", "changes nothing here"),
    (["train", "grpo", *LOCK, "--lr", "-1"], "lr", "above 0"),
    (["train", "grpo", *LOCK, "--group-size", "1"], "group_size", "at least 2"),
    (["train", "gspo", *LOCK, "--prompts", "2"], "minibatches", "only 2 groups"),
    (["train", "grpo", *LOCK, "--top-p", "1.5"], "top_p", "(0, 1]"),
    (["train", "grpo", "--task", "tabular-lock", "--trackers", "tensorbord"], "trackers", "did you mean 'tensorboard'"),
    (["train", "grpo", "--task", "broken.jsonl"], "broken.jsonl", "line 2"),
    (["train", "grpo", "--task", "fields.jsonl"], "fields.jsonl", "line 2"),
    (["train", "grpo", "--task", "empty.jsonl"], "task", "empty"),
    (["train", "grpo", "--task", "none.jsonl"], "task", "no such file"),
    (["train", "grpo", "--task", "good.jsonl", "--policy", "folder"], "policy", "no weights"),
    (["train", "grpo", "--task", "good.jsonl", "--policy", "owner/name"], "policy", "without a network"),
    (["train", "grpo", "--task", "good.jsonl", "--policy", "transformer:context=8", "--max-tokens", "6", "--out", "r",
      "--trackers"], "prompt", "shorten"),
    (["train", "grpo", *LOCK, "--out", "full"], "out", "is no run"),
    (["train", "grpo", *LOCK, "--reward", "rewards.py:none"], "reward", "no such function"),
    (["train", "grpo", *LOCK, "--reward", "rewards.py:nan", "--out", "r"], "reward nan", "finite"),
    (["train", "grpo", *LOCK, "--reward", "rewards.py:short", "--out", "r"], "reward short", "8 responses"),
    (["train", "grpo", *LOCK, "--reward", "rewards.py:raises", "--out", "r"], "reward raises", "ZeroDivisionError"),
    (["train", "grpo", *LOCK, "--method-file", "method.py"], "method-file", "cannot be imported"),
    (["resume", "nothing"], "run", "no run directory"),
    (["eval", "full"], "run", "no run directory"),
    (["compare", "grpo", *LOCK], "methods", "at least two"),
    (["show", "sapoo"], "method", "did you mean 'sapo'"),
    (["reproduce", "grpo"], "method", "there are claims for"),
    (["open", "full"], "path", "report.html"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "field", "says"), BAD, ids=[" ".join(a)[:60] for a, _, _ in BAD])
def test_bad_input_is_one_clear_error(here, capsys, args, field, says):
    before = files(here)
    assert main(args) == 2
    out, err = capsys.readouterr()
    said = (out + err).replace("\n", " ")
    assert f"error: {field}" in said if field else "Unrecognized" in said
    assert says in said
    assert "Traceback" not in said
    left = [f for f in files(here) if f not in before]
    assert all(f == "r" or f.startswith("r/") for f in left), left
    assert not [f for f in left if "policy" in f or ".writing-" in f]


def test_a_run_that_failed_on_a_reward_goes_on_when_it_is_mended(here, capsys, monkeypatch):
    monkeypatch.setenv("ANYPOLICY_HOME", str(here / "home"))
    assert main(["train", "grpo", *LOCK, "--reward", "rewards.py:raises", "--out", "r"]) == 2
    (here / "rewards.py").write_text("def raises(prompt, responses): return [float(len(r) % 2) for r in responses]\n")
    assert main(["resume", "r", "--quiet"]) == 2
    assert "it has changed since" in capsys.readouterr().err
    assert main(["resume", "r", "--quiet", "--trust"]) == 0
    rows = [json.loads(line) for line in (here / "r" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2


def test_train_eval_and_open_files(here, capsys):
    assert main(["train", "ngrpo+vade", *LOCK, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "success" in out
    assert "next: anypolicy resume" in out
    for name in ("recipe.yaml", "metrics.jsonl", "report.html", "checkpoints", "policy", "samples"):
        assert (here / "run" / name).exists()
    assert main(["eval", "run"]) == 0
    final = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert json.loads(capsys.readouterr().out)["probe/success"] == final["probe/success"]
    assert main(["train", "grpo", *LOCK, "--out", "run"]) == 2
    assert "anypolicy resume run" in capsys.readouterr().err


def test_compare_goes_on_where_it_was(here, capsys):
    command = ["compare", "grpo", "sapo", "--seeds", "2", *LOCK, "--out", "cmp"]
    assert main(command) == 0
    first = capsys.readouterr().out
    times = {f: f.stat().st_mtime_ns for f in here.glob("cmp/*/*/metrics.jsonl")}
    assert len(times) == 4
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert (here / "cmp" / "report.html").exists()
    assert main([*command, "--lr", "0.3"]) == 2
    assert "lr: 0.1 → 0.3" in capsys.readouterr().err


def test_reproduce_prints_the_verdict(here, capsys):
    (here / "claims").mkdir()
    (here / "claims" / "thing.py").write_text(
        "from anypolicy.evidence.checks import Check\n"
        "CLAIM, SEEDS, ARMS = 'one is above zero', 5, ('a',)\n"
        "def run(arm, seed): return {'x': 1.0 + seed}\n"
        "CHECKS = [Check('x', '> 0', lambda r: r['a']['x'], above=0.0)]\n"
    )
    assert main(["reproduce", "thing", "--trust"]) == 0
    assert "confirmed over 5 seeds" in capsys.readouterr().out
    assert (here / "docs" / "evidence" / "thing.json").exists()


def test_methods_as_json(capsys):
    assert main(["methods", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert {"grpo", "dr-grpo", "dapo", "gspo", "rloo", "reinforce-pp", "ppo", "ngrpo", "sapo", "vade"} <= {
        e["slug"] for e in entries
    }
    for e in entries:
        assert {"slug", "paper", "year", "family", "changes", "composes_with", "claim"} <= e.keys()


def test_what_a_run_on_recorded_data_would_do(here, capsys):
    (here / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    small = ["--policy", "transformer:layers=1,width=8,heads=2"]
    assert main(["explain", "dpo", "--task", "pairs.jsonl:heldout=0", *small]) == 0
    out = capsys.readouterr().out
    assert "the recorded responses of 16 prompts, nothing sampled" in out and "tokens generated" not in out
    assert main(["explain", "mcts-dpo", "--task", "tiny-add"]) == 0
    assert "tokens generated" in capsys.readouterr().out


def test_show_and_explain(capsys):
    assert main(["show", "sapo"]) == 0
    assert "def soft_gate" in capsys.readouterr().out
    assert main(["explain", "ngrpo+vade", "--task", "tiny-add"]) == 0
    out = capsys.readouterr().out
    assert "ThompsonSampler" in out
    assert "lr = 0.0003" in out


@pytest.mark.parametrize(
    "command", [[], ["train"], ["train", "ngrpo"], ["resume"], ["eval"], ["compare"], ["reproduce"], ["methods"], ["show"],
                ["explain"], ["open"]]
)  # fmt: skip
def test_every_help_has_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "anypolicy " + (command[0] if command else "train") in out


def test_a_method_file_of_ones_own(here, capsys):
    (here / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from anypolicy.catalogue import Card, method\n"
        "from anypolicy.stages.common import GroupAdvantage\n"
        "from anypolicy.methods.language.grpo import grpo\n"
        "@method(Card('t', 'p', 2026, 'language', 'i', ('advantage',), 'c', 'c'))\n"
        "def my_own(size: int = 4):\n"
        "    return replace(grpo(size), advantage=GroupAdvantage('population'))\n"
    )
    assert main(["train", "sapo+my-own", *LOCK, "--method-file", "mine.py", "--out", "run", "--quiet"]) == 0
    assert main(["resume", "run", "--steps", "3", "--quiet"]) == 0


def test_import_is_light():
    code = "import sys, anypolicy; print('torch' in sys.modules, anypolicy.__version__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "0.1.0"]


@pytest.mark.parametrize("command", [["methods"], ["methods", "--json"], ["show", "grpo"]])
def test_a_reader_that_has_seen_enough_is_no_traceback(command):
    with subprocess.Popen(
        [sys.executable, "-m", "anypolicy", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as p:
        p.stdout.close()
        assert p.stderr.read() == b""


@pytest.mark.parametrize("module", ["tyro", "torch"])
def test_ctrl_c_while_it_is_loaded_is_no_traceback(tmp_path, module):
    """`module` stands for all that is imported: Ctrl-C comes in the middle of it."""
    (tmp_path / f"{module}.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    [place, name] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["anypolicy"].split(":")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    script = ["-c", f"import sys; from {place} import {name} as m; sys.exit(m())"]
    for start, hashes in ((script, {}), (["-m", "anypolicy"], {"PYTHONHASHSEED": "0"})):
        env = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {"PYTHONPATH": path} | hashes
        ended = subprocess.run([sys.executable, *start, "explain", "grpo"], env=env, capture_output=True, text=True)
        assert ended.returncode in (130, -2) and not ended.stdout  # a shell calls both 130
        assert ended.stderr.startswith("stopped; ") and ended.stderr.count("\n") == 1


def test_a_damaged_file_of_finished_runs_is_named(here, capsys):
    folder = here / "claims"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from anypolicy.evidence.checks import Check\nCLAIM, SEEDS, ARMS = 'c', 2, ('a',)\n"
        "def run(arm, seed):\n    return {'x': float(seed)}\nCHECKS = [Check('n', '> -9', lambda r: r['a']['x'], above=-9.0)]\n"
    )
    assert main(["reproduce", "mine", "--claims", str(folder)]) == 0
    kept = here / "docs" / "evidence" / ".mine.runs.json"
    good = json.loads(kept.read_text())
    for broken in ("", "{", "[]", "\udcff", json.dumps(good | {"runs": 3}), json.dumps(good | {"runs": {"a/0": 1}}),
                   json.dumps({"runs": {}})):  # fmt: skip
        kept.write_bytes(broken.encode(errors="surrogateescape"))
        assert main(["reproduce", "mine", "--claims", str(folder)]) == 2
        said = capsys.readouterr().err
        assert ".mine.runs.json" in said and "delete it" in said
    kept.write_text(json.dumps(good))
    assert main(["reproduce", "mine", "--claims", str(folder)]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train sac --task gym/Pendulum-v1 --sac.gamma 0.9", "sac.gamma: got '0.9'; here it is 'discount'"),
        ("train sac --task gym/Pendulum-v1 --sac.learning-rate=1e-3", "sac.learning_rate: got '1e-3'; here it is 'lr'"),
        (
            "train grpo --task tiny-add --grpo.num_generations 4",
            "grpo.num_generations: got '4'; here it is 'group_size'",
        ),
        ("train grpo+dapo --task tiny-add --dapo.clip-hgh 4", "did you mean 'clip_high'?"),
        ("train ppo --task gym/CartPole-v1", "for controllers (ppo-control, sac, dqn, …)"),
        ("train sac --task gym/CartPole-v1", "for choices use dqn or ppo-control"),
        ("train dqn --task gym/Pendulum-v1", "for a box of actions use sac, td3 or ppo-control"),
        ("train grpo --task tiny-add --trackers none tensorboard", "or none alone"),
    ],
)
def test_what_other_libraries_call_otherwise_is_named_in_the_error(words, told, capsys):
    assert main(words.split()) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert told in said and said.startswith("error: ") and said.count("error:") == 1


def test_no_tracker_and_the_version(tmp_path, capsys):
    words = f"train sac --task gym/Pendulum-v1 --sac.no-learn-alpha --sac.warmup 4 --steps 8 --trackers none --out {tmp_path}/run"
    assert main([*words.split(), "--sac.hidden", "8", "--eval-episodes", "1", "--quiet"]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists() and (tmp_path / "run" / "metrics.jsonl").exists()
    capsys.readouterr()
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == anypolicy.__version__
