"""Data without what a method learns from: the refusal names fields, and a file with just these fields is accepted."""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anypolicy import catalogue
from anypolicy.data.demonstrations import FIELDS as FIELDS_OF_EPISODES
from anypolicy.data.demonstrations import Episode, load_episodes, save_episodes
from anypolicy.errors import InputError
from anypolicy.families import control, diffusion, language
from anypolicy.learners.recipe import OfflineRecipe
from anypolicy.tasks.language.preferences import load_pairs
from tests.conformance import test_every_controller as controllers

METHODS = sorted(catalogue.methods())
REPORT = [{"sentence": "A b.", "score": 1, "error": "correct", "rewrite": "A c."}]
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "no", "satisfied": False}]  # fmt: skip
ROWS = {
    "answers": {"answer": "1"},
    "references": {"response": "1"},
    "both": {"answer": "1", "response": "1"},
    "pairs": {"chosen": "1", "rejected": "2"},
    "labels": {"completion": "1", "label": True},
    "scores": {"responses": ["1", "2"], "scores": [1, 0]},
    "reports": {"reference": "A c.", "generated": "A b.", "report": REPORT},
    "talks": {"conversation": TALK},
}
"""What stands in a row beside its prompt."""
FIELDS = set(itertools.chain(*ROWS.values()))


def task(folder, kind):
    """A file with eight rows of a kind."""
    rows = [{"prompt": f"{i}+{i}"} | ROWS[kind] for i in range(8)]
    for i, row in enumerate(rows):
        if kind == "talks":
            del row["prompt"]
            row["conversation"] = [{**TALK[0], "content": f"{i}?"}, *TALK[1:]]
    path = folder / f"{kind}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"{path}{':verifier=none' if kind == 'scores' else ''}"


def asked(folder, slug, kind):
    """The fields that a method asks for where it is given this file; None if it takes it."""
    try:
        language.plan(slug, language.Settings(task(folder, kind)))
    except InputError as error:
        return set(re.findall(r"'(\w+)'", error.allowed)) & FIELDS


@pytest.mark.parametrize("slug", METHODS)
def test_what_a_refusal_asks_for_is_accepted(slug, tmp_path):
    """Whoever gives the fields of the message, beside those that he had or instead of them, is served: at once, or after
    a second message that asks for more."""
    told = {kind: asked(tmp_path, slug, kind) for kind in ROWS}
    assert None in told.values()

    def offers(kind):
        named, own = told[kind], ROWS[kind].keys()
        return [k for k, row in ROWS.items() if named & row.keys() and row.keys() <= named | own]

    for kind in (k for k, named in told.items() if named is not None):
        assert offers(kind), f"{slug} refuses {kind} and names no field"
        for k in (k for k in offers(kind) if told[k] is not None):
            more = [k2 for k2 in offers(k) if told[k2] is None and ROWS[k].keys() < ROWS[k2].keys()]
            assert more, f"{slug} refuses {kind}, asks for {k} and refuses that"


def test_a_row_with_nothing_but_a_prompt_is_told_what_each_method_learns_from(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    for slug, told in (("sft", "a row needs 'response'"), ("grpo", "'answer', or a reward of your own")):
        with pytest.raises(InputError, match=told):
            language.plan(slug, language.Settings(str(path)))


@pytest.mark.parametrize("missing", ["prompt", "chosen", "rejected"])
def test_pairs_of_a_reward_model_name_the_field(tmp_path, missing):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({k: v for k, v in ({"prompt": "a"} | ROWS["pairs"]).items() if k != missing}))
    with pytest.raises(InputError, match=f"line 1.*'{missing}'"):
        load_pairs(str(path))


PICTURES = sorted(slug for slug, m in catalogue.methods(None).items() if m.family == "diffusion")


def pictures(folder: Path, row: dict[str, str]) -> str:
    """A folder of four pictures, or pairs of pictures."""
    names = [k for k in row if k != "text"]
    lines = [{"text": f"{i}"} | {name: f"{name}{i}.png" for name in names} for i in range(4)]
    for n, (line, name) in enumerate(itertools.product(lines, names)):
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(folder / line[name])
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return f"{folder}:size=8"


@pytest.mark.parametrize("slug", PICTURES)
def test_a_method_of_pairs_of_pictures_names_their_fields(slug, tmp_path):
    pairs = catalogue.get(slug, "diffusion").recipe().needs_pairs
    for kind, row in (("one", {"file_name": ""}), ("two", {"chosen": "", "rejected": ""})):
        folder = tmp_path / kind
        folder.mkdir()
        settings = diffusion.DiffusionSettings(task=pictures(folder, row), policy="a/pipeline", trackers=())
        if pairs and kind == "one":
            with pytest.raises(InputError, match="`chosen` and `rejected`"):
                diffusion.plan(slug, settings)
        else:
            assert diffusion.plan(slug, settings).task.winners


@pytest.mark.parametrize("slug", controllers.METHODS)
def test_a_controller_that_learns_from_demonstrations_asks_for_them(slug):
    recipe = catalogue.get(slug, "control").recipe()
    if not (isinstance(recipe, OfflineRecipe) or recipe.needs_offline):
        return
    task = controllers.CHOICES if controllers.is_for_choices(recipe) else controllers.BOX
    with pytest.raises(InputError, match=r"^demos: .*demonstrations"):
        control.plan(slug, control.ControlSettings(task=task, trackers=()), {})


@pytest.mark.parametrize("missing", [*FIELDS_OF_EPISODES, "length"])
def test_a_data_set_of_demonstrations_names_what_it_lacks(missing, tmp_path):
    path, one = tmp_path / "demos.safetensors", torch.zeros(3)
    save_episodes(str(path), [Episode(torch.zeros(4, 3), torch.zeros(3, 1), one, one, one)])
    save_file({k: v for k, v in load_file(path).items() if k != missing}, path)
    with pytest.raises(InputError, match=rf"\b{missing}\b"):
        load_episodes(path)
