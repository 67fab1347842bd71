"""Diffusion models as a user runs them: command line, report, comparison, what cannot be used."""

import base64
import io
import json
import re

import pytest
import torch

from anypolicy.cli.app import main
from anypolicy.evidence.pictures import grid, scatter
from anypolicy.families import diffusion
from anypolicy.studies.compare import compare

SMALL = ["--policy", "fresh", "--trackers", "--eval-samples", "20", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on digits from the command line."""
    out = tmp_path_factory.mktemp("diffusion") / "run"
    command = ["train", "seppo", "--task", "digits:winners=16", "--steps", "2", "--sampler-steps", "2", *SMALL]
    assert main([*command, "--seppo.batch", "4", "--seppo.stage", "1", "--out", str(out)]) == 0
    return out


def test_the_command_line_trains_resumes_evaluates_and_explains(run, capsys):
    assert main(["explain", "seppo", "--task", "digits"]) == 0
    said = capsys.readouterr().out
    assert "preferred samples" in said and "that fit this task: beta 20.0, batch 64" in said
    assert main(["resume", str(run), "--steps", "3"]) == 0
    assert "recognised" in capsys.readouterr().out
    assert main(["eval", str(run), "--samples", "12"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["eval/n"] == 12 and 0 <= said["eval/recognised"] <= 1
    for arguments in (["--prompts", "3"], ["--samples", "1"]):
        assert main(["eval", str(run), *arguments]) == 2
    assert main(["resume", str(run), "--steps", "1"]) == 2


def test_the_report_shows_samples_before_and_after(run):
    from PIL import Image

    page = (run / "report.html").read_text()
    pictures = re.findall(r'<img alt="[^"]*" src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 2 and "held-out images" in page
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert shown.width > 800


def test_pictures_of_samples():
    from PIL import Image

    images = torch.zeros(5, 1, 2, 2)
    images[4] = 1
    sheet = Image.open(io.BytesIO(grid(images, 4)))
    assert sheet.size[0] == 960 // 12 * 12 and sheet.getpixel((3, 3)) == (0, 0, 0)
    assert sheet.getpixel((3, sheet.size[1] // 2 + 3)) == (255, 255, 255)
    assert scatter(torch.zeros(3, 2), torch.ones(3, 2)).startswith(b"\x89PNG")


def test_compare(tmp_path):
    study = compare(
        ["diffusion-sft", "diffusion-dpo"], task="ring8:winners=20", seeds=2, out=tmp_path / "c", policy="fresh", steps=2,
        trackers=(), eval_samples=20, threads=1, quiet=True, knobs={"diffusion-sft": {"batch": 4}},
    )  # fmt: skip
    assert "diffusion-sft" in str(study) and (tmp_path / "c" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["train", "seppo", "--task", "digit"], "did you mean 'digits'"),
        (["train", "seppo", "--task", "tiny-add"], "a diffusion model learns from"),
        (["train", "sac", "--task", "digits"], "a controller learns in"),
        (["train", "grpo+seppo", "--task", "digits"], "it is of the diffusion family"),
        (["train", "seppo", "--task", "ring8", "--steps", "0"], "above 0"),
        (["train", "seppo", "--task", "ring8", "--seppo.beta", "-1"], "above 0"),
        (["train", "seppo", "--task", "ring8", "--seppo.stage", "0"], "of at least 1"),
        (["train", "seppo", "--task", "ring8", "--policy", "nowhere", "--out", "x"], "pipeline"),
        (["train", "seppo", "--task", "ring8", "--policy", "fresh", "--guidance", "3", "--out", "x"], "no such choice"),
        (["train", "diffusion-dpo", "--task", "folder", "--policy", "fresh"], "learns from pairs"),
        (["train", "diffusion-sft", "--task", "folder"], "name the model to start from"),
        (["train", "diffusion-sft", "--task", "folder", "--policy", "fresh"], "no model of its own"),
    ],
)
def test_one_clear_line(arguments, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").touch()
    line = json.dumps({"text": "a", "file_name": "a.png"}) + "\n"
    (tmp_path / "folder" / "metadata.jsonl").write_text(line * 3)
    assert main(arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and match in said[0]
    assert not (tmp_path / "x").exists()


def test_suggested_settings_are_in_the_recipe_and_the_users_win():
    p = diffusion.plan("seppo", diffusion.DiffusionSettings("digits"), {"beta": 3.0})
    assert p.knobs == {"beta": 3.0, "batch": 64, "lr": 1e-4, "warmup": 0} and p.recipe.learner.beta == 3.0
    assert diffusion.plan_from(json.loads(json.dumps(p.written()))).recipe == p.recipe
