"""A run's policy on the Hugging Face hub, with a model card made of its recipe, its evaluation and its verdict."""

from __future__ import annotations

import shutil
import tempfile
from os.path import exists
from pathlib import Path
from typing import Any

import yaml

from anypolicy import catalogue
from anypolicy.data.readers import first_line
from anypolicy.errors import RAISED, InputError, checked
from anypolicy.evidence.claims import verdict_of
from anypolicy.families.base import family_of_run
from anypolicy.runs.directory import RunDirectory
from anypolicy.version import __version__

KEPT = ("recipe.yaml", "metrics.jsonl")
"""Files of the run that go with what it learnt."""
LEARNT = ("policy", "reward-model")


@checked
def push(path: str | Path, name: str, *, private: bool = False) -> str:
    """Upload what a run has learnt to OWNER/NAME, with its recipe, its ledger and a model card; the address. The hub is
    that of HF_ENDPOINT, the token that of `hf auth login` or HF_TOKEN."""
    from huggingface_hub import HfApi

    path = Path(path)
    folder = next((path / k for k in LEARNT if (path / k).is_dir()), None)
    if folder is None:
        raise InputError("run", str(path), f"it has no policy yet: let it end, with `anypolicy resume {path}`")
    if name.count("/") != 1:
        raise InputError("name", name, "write OWNER/NAME")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        shutil.copytree(folder, work, dirs_exist_ok=True)
        for file in KEPT:
            shutil.copyfile(path / file, work / file)
        written = yaml.safe_load((work / "recipe.yaml").read_text())
        (work / "recipe.yaml").write_text(yaml.safe_dump(without_places(written), sort_keys=False, allow_unicode=True))
        (work / "README.md").write_text(card(path, name), encoding="utf-8")
        try:
            api = HfApi()
            at = str(api.create_repo(name, private=private, exist_ok=True))
            api.upload_folder(repo_id=name, folder_path=work, commit_message=f"Trained with anypolicy {__version__}")
        except RAISED as error:  # what it and the network raise has no common type
            first = first_line(error)
            raise InputError("name", name, f"the hub does not take it ({first}): check the name, HF_TOKEN and the "
                             "network") from error  # fmt: skip
    return at


def card(path: Path, name: str) -> str:
    """The model card: what was learnt, by what, from what, how well, and how to use it."""
    with RunDirectory.open(path, lock=False) as run:
        recipe, rows = without_places(run.recipe()), run.read()
    family = family_of_run(path)
    spec = str(recipe["method"])
    used = [m for w in spec.split("+") if (m := catalogue.methods(None).get(w.strip().partition(".")[0]))]
    base, data = recipe.get("policy"), recipe.get(family.data)
    tags = ["reinforcement-learning", "anypolicy", *(m.slug for m in used)]
    head: dict[str, Any] = {"library_name": "anypolicy", "tags": tags}
    if isinstance(base, str) and base.count("/") == 1 and not exists(base) and ":" not in base:
        head["base_model"] = base
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {name.partition('/')[2]}", ""]
    start = f", from `{base}`" if base else ""
    lines += [f"Trained by `{spec}` on `{data}`{start}, with [anypolicy](https://pypi.org/project/anypolicy/) "
              f"{__version__}.", ""]  # fmt: skip
    lines += [f"- {m.slug}: {m.card.title} ({m.card.paper}, {m.card.year}): {m.card.idea}" for m in used]
    evaluated = [r for r in rows if r.get("event") == "eval"]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        lines += ["", "## Evaluation", "", "Held out, before and after training.", "",
                  f"| | step {first['step']:,} | step {last['step']:,} |", "|---|---|---|"]  # fmt: skip
        names = [k for k in last if k not in ("step", "event")]
        lines += [f"| {k} | {number(first.get(k))} | {number(last[k])} |" for k in names]
    for m in used:
        if known := verdict_of(m.slug):
            lines += ["", f"## Does {m.slug} hold at small scale?", "",
                      f"Its paper's claim was tested apart from this run: {known['claim']}. "
                      f"{known['verdict'].capitalize()} over {known['seeds']} seeds. {known['note']}"]  # fmt: skip
    lines += ["", "## Use", "", "```python", *usage(family.name, name), "```", "", "## Recipe", "", "```yaml",
              yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(), "```", ""]  # fmt: skip
    return "\n".join(lines)


def usage(family: str, name: str) -> list[str]:
    """How what was learnt is loaded again."""
    if family == "language":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        ]  # fmt: skip
    lines = ["from huggingface_hub import snapshot_download", "", f'folder = snapshot_download("{name}")']
    if family == "control":
        return [*lines, "from anypolicy.families.control import load_controller", "",
                "learner, task = load_controller(folder)"]  # fmt: skip
    return lines


def number(value: Any) -> str:
    """A value of the ledger as the table shows it."""
    return "" if value is None else f"{value:.4g}"


def without_places(value: Any) -> Any:
    """Plain values whose absolute paths are file names: where files lay on a machine is nobody's business."""
    if isinstance(value, dict):
        return {without_places(k): without_places(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return value.rsplit("/", 1)[1]
    return value
