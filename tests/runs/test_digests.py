"""A run goes on with the data it began with, or not at all."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from anypolicy.errors import InputError
from anypolicy.families import language as training
from anypolicy.families.reward_models import RewardSettings
from anypolicy.families.reward_models import plan as reward_plan
from anypolicy.runs.digests import digests_of
from anypolicy.runs.recipes import recipe_of, settings_from

SMALL = {"policy": "transformer:layers=1,width=16,heads=2,context=64", "prompts": 2, "trackers": (), "quiet": True}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    return path


def questions(path, answer="b"):
    return write(path, *({"prompt": f"{i}?", "response": answer} for i in range(8)))


def test_a_changed_file_ends_a_resume_before_it_trains_and_the_old_one_goes_on(tmp_path):
    data, run = questions(tmp_path / "x.jsonl"), tmp_path / "run"
    training.train("sft", task=f"{data}:heldout=0.25", steps=1, out=run, **SMALL)
    ledger = (run / "metrics.jsonl").read_bytes()
    questions(data, "c")
    with pytest.raises(InputError, match="when the run began") as error:
        training.resume(run, steps=2, quiet=True)
    assert error.value.field == str(data)
    assert (run / "metrics.jsonl").read_bytes() == ledger
    data.unlink()
    with pytest.raises(InputError, match="no such file"):
        training.resume(run, steps=2, quiet=True)
    questions(data)
    assert training.resume(run, steps=2, quiet=True).rows[-1]["step"] == 2


def test_a_recipe_without_digests_goes_on_and_has_them_from_then_on(tmp_path):
    data, run = questions(tmp_path / "x.jsonl"), tmp_path / "run"
    training.train("sft", task=str(data), steps=1, out=run, **SMALL)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert list(recipe.pop("digests")) == [str(data)]
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    training.resume(run, steps=2, quiet=True)
    assert list(yaml.safe_load((run / "recipe.yaml").read_text())["digests"]) == [str(data)]


def kinds(folder):
    """(settings, a file whose change matters) for every way to name data."""
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / "a.png")
    np.savez(folder / "d.npz", reward=np.zeros(2))
    (folder / "hub").mkdir()
    (folder / "drawn").mkdir()
    (folder / "minari" / "door" / "v0" / "data").mkdir(parents=True)
    deep = questions(folder / "minari" / "door" / "v0" / "data" / "main_data.hdf5")
    shows, table = questions(folder / "hub" / "train.jsonl"), questions(folder / "drawn" / "metadata.jsonl")
    seen = write(folder / "seen.jsonl", {"prompt": "what?", "images": ["a.png"], "answer": "b"})
    (folder / "reward.py").write_text("def mine(prompt, responses): return [0.0 for _ in responses]\n")
    plain = questions(folder / "plain.jsonl")
    return [
        ({"task": f"{plain}:heldout=0.5"}, plain),
        ({"task": str(seen)}, seen),
        ({"task": str(seen)}, folder / "a.png"),
        ({"task": f"{seen}:use=items,task='{plain}'"}, plain),
        ({"task": f"hf/{folder / 'hub'}:verifier=none"}, shows),
        ({"task": f"{folder / 'drawn'}:size=8"}, table),
        ({"pairs": str(plain)}, plain),
        ({"demos": str(folder / "d.npz")}, folder / "d.npz"),
        ({"demos": "door/v0"}, deep),
        ({"reward": f"{folder / 'reward.py'}:mine"}, folder / "reward.py"),
    ]


@pytest.mark.parametrize("i", range(10))
def test_every_way_to_name_data(tmp_path, monkeypatch, i):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    settings, file = kinds(tmp_path)[i]
    before = digests_of(settings)
    assert digests_of(settings) == before != {}
    kept = file.read_bytes()
    file.write_bytes(kept + b"\n")
    assert digests_of(settings).keys() == before.keys() and digests_of(settings) != before
    file.write_bytes(kept)
    assert digests_of(settings) == before


def test_names_that_are_no_files_have_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "tiny-add", "scripted"):
        (tmp_path / name).mkdir()
        assert digests_of({"task": name, "demos": "scripted:noise=0.1"}) == {}
    assert digests_of({"task": "x" * 5000 + ".jsonl", "pairs": 5, "demos": None}) == {}


def test_pairs_of_a_reward_model(tmp_path):
    pairs = write(tmp_path / "p.jsonl", *({"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(4)))
    written = reward_plan("bradley-terry", RewardSettings(str(pairs))).written()
    assert settings_from(RewardSettings, written)[2].pairs == str(pairs)
    write(pairs, *({"prompt": f"{i}", "chosen": "b", "rejected": "a"} for i in range(4)))
    with pytest.raises(InputError, match="when the run began"):
        settings_from(RewardSettings, written)
    with pytest.raises(InputError, match="a digest for every file"):
        settings_from(RewardSettings, written | {"digests": 3})


def test_a_mended_reward_goes_on_and_says_so(tmp_path, capsys):
    file = tmp_path / "reward.py"
    file.write_text("a = 1\n")
    written = recipe_of("grpo", {}, training.Settings("tabular-lock", reward=f"{file}:mine"))
    assert settings_from(training.Settings, written, trust=True) and not capsys.readouterr().err
    file.write_text("a = 2\n")
    assert settings_from(training.Settings, written, trust=True)[2].reward == (f"{file}:mine",)
    assert "has changed since the run began" in capsys.readouterr().err
