"""A run's recipe as plain values: written, read, and compared before the run goes on."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from anypolicy.errors import InputError
from anypolicy.runs.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from anypolicy.runs.digests import check_digests, digests_of
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.strict_json import json_text, json_value

MAY_CHANGE = ("steps", "trackers", "eval_every", "eval_episodes", "eval_samples", "checkpoint_every")
"""Settings that may be others when a run goes on."""
S = TypeVar("S")


def recipe_of(method: str, knobs: dict[str, Any], settings: Any) -> dict[str, Any]:
    """A method, its settings and those of the run as the plain values of recipe.yaml, enough to run again: all but
    `out`, paths as text; with the digests of the files that the data are in."""
    plain = {
        k: [str(x) for x in v] if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
        for k, v in asdict(settings).items()
        if k != "out"
    }
    digests = digests_of(plain)
    return {"method": method, "knobs": knobs} | plain | ({"digests": digests} if digests else {})


def settings_from(kind: type[S], written: dict[str, Any]) -> tuple[str, dict[str, Any], S]:
    """The inverse of `recipe_of`. Raises InputError where a file is not what its digest says."""
    values = dict(written)
    check_digests(values.pop("digests", {}), values)
    values.pop("prompts_changed", None)
    try:
        method, knobs = values.pop("method"), values.pop("knobs")
        values["trackers"] = tuple(values["trackers"])
        if "method_file" in {f.name for f in fields(kind)}:  # type: ignore[arg-type]
            values["method_file"] = tuple(Path(x) for x in values["method_file"])
        return method, knobs, kind(**values)
    except (KeyError, TypeError) as error:
        raise InputError("recipe.yaml", str(error), "it does not describe a run of this version") from error


def comparable(written: dict[str, Any]) -> dict[str, Any]:
    """The part of a recipe that must not change between stop and resume; digests are compared when it is read."""
    return json_value(json_text({k: v for k, v in written.items() if k not in (*MAY_CHANGE, "digests")}, exact=True))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field: old → new` for every difference."""
    names = sorted(old.keys() | new.keys())
    return [f"{k}: {old.get(k)} → {new.get(k)}" for k in names if old.get(k) != new.get(k)]


def checkpoint_of(run: RunDirectory, written: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint of a run, if it has one. Raises InputError where it was made with other settings; one of
    an older version may lack some, which are then as they were before there was a choice."""
    folder = latest_checkpoint(run.path)
    if folder is None:
        return None
    saved = load_checkpoint(folder)
    old = saved.state["recipe"]
    if changed := differences(old, {k: v for k, v in comparable(written).items() if k in old}):
        raise InputError(
            "recipe.yaml", ", ".join(changed), "these settings differ from the checkpoint's: put them back"
        )
    return saved


def made_checkpoint(run: RunDirectory, written: dict[str, Any]) -> Checkpoint:
    """The newest checkpoint of a run. Raises InputError also where there is none."""
    saved = checkpoint_of(run, written)
    if saved is None:
        raise InputError("run", str(run.path), "it has no checkpoint yet: go on with `anypolicy resume`")
    return saved


def rewind(run: RunDirectory, saved: Checkpoint | None, written: dict[str, Any], steps: int) -> int:
    """Cut the ledger to a checkpoint (or to nothing), for a run of `steps` steps by this recipe; the step to begin
    with."""
    step = 0 if saved is None else saved.step
    if steps < step:
        raise InputError("steps", steps, f"the run has {step} steps already: use at least as many")
    run.truncate_to(step)
    if run.recipe() != written:
        run.rewrite_recipe(written)
    return step
