"""Vision-language runs from the command line: trained, resumed bit for bit, evaluated; and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from anypolicy.cli.app import main
from anypolicy.tasks.language import shapes

SHORT = ["--trackers", "--quiet", "--threads", "1", "--products", "default", "--prompts", "4", "--eval-prompts", "4",
         "--eval-every", "0", "--checkpoint-every", "1"]  # fmt: skip
TINY = ["--policy", "vlm:layers=1,width=16,heads=2,context=160,image=16", "--max-tokens", "6"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYPOLICY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shapes, "STEPS", 1)
    monkeypatch.chdir(tmp_path)


def weights(run):
    return (run / "policy" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "command",
    [["sft", "--task", "shapes:prompts=12,heldout=8"],
     ["grpo", "--task", "shapes:prompts=12,heldout=8", "--group-size", "3", "--reward", "own.py:reward",
      *TINY]],
    ids=["own policy", "policy from scratch"],
)  # fmt: skip
def test_a_run_is_trained_resumed_and_evaluated(command, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "def reward(prompt, responses):\n    return [sum(map(ord, r)) % 7 for r in responses]\n"
    )
    assert main(["train", *command, *SHORT, "--steps", "2", "--out", "whole"]) == 0
    assert main(["train", *command, *SHORT, "--steps", "1", "--out", "half"]) == 0
    assert weights(tmp_path / "half") != weights(tmp_path / "whole")
    assert main(["resume", "half", "--steps", "2", "--quiet"]) == 0
    assert weights(tmp_path / "half") == weights(tmp_path / "whole")
    rows = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval/accuracy" in r and "probe/hallucination" in r for r in rows)
    capsys.readouterr()
    assert main(["eval", "whole", "--prompts", "2"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_files_of_images_are_learnt_from(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append({"prompt": "which?", "image": f"{i}.png", "chosen": str(i), "rejected": "no"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answers = [
        {"prompt": r["prompt"], "image": r["image"], "answer": r["chosen"], "response": r["chosen"]} for r in rows
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    assert main(["train", "dpo", "--task", "pairs.jsonl", *TINY, *SHORT, "--steps", "2", "--out", "a"]) == 0
    assert main(["train", "sft", "--task", "answers.jsonl", *TINY, *SHORT, "--steps", "1", "--out", "b"]) == 0


def test_what_cannot_see_is_refused_before_anything_is_written(tmp_path, capsys):
    task = ["--task", "shapes:prompts=4,heldout=2", *SHORT, "--steps", "1", "--out", "run"]
    assert main(["train", "sft", *task, "--policy", "transformer:layers=1,width=16,heads=2"]) == 2
    assert "use a vision-language policy" in capsys.readouterr().err
    assert main(["train", "grpo", *task, *TINY, "--record"]) == 2
    assert "record" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
