"""A run's recipe as plain values: written, read, and compared before the run goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from anypolicy.errors import InputError, check_settings, check_values
from anypolicy.runs.checkpoint import Checkpoint, Position, latest_checkpoint, load_checkpoint, save_checkpoint
from anypolicy.runs.digests import check_digests, digests_of
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.strict_json import json_text, json_value
from anypolicy.runs.trust import allow, check

EVALUATION = "eval_"
"""How settings of evaluations begin."""
MAY_CHANGE = (
    "steps", "trackers", "checkpoint_every", "checkpoint_minutes", "device", "micro_tokens", "recompute",
)  # fmt: skip
"""Settings that may be others when a run goes on, as those of evaluations may."""
S = TypeVar("S")


def recipe_of(method: str, knobs: dict[str, Any], settings: Any) -> dict[str, Any]:
    """A method, its settings and those of the run as the plain values of recipe.yaml, enough to run again: all but
    `out`, paths as text; with its family, and the digests of the files that the data are in."""
    own = {k: plain(v) for k, v in asdict(settings).items() if k != "out"}
    digests = digests_of(own)
    head = {"family": type(settings).family, "method": method, "knobs": plain(knobs)}
    return head | own | ({"digests": digests} if digests else {})


def plain(value: Any) -> Any:
    """A value as YAML knows it: paths as text, tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value.item() if isinstance(value, np.generic) else value


def settings_from(kind: type[S], written: dict[str, Any], *, trust: bool = False) -> tuple[str, dict[str, Any], S]:
    """The inverse of `recipe_of`. Code that the recipe names is refused where the user has not run it before, or
    allowed with `trust`. Raises InputError also where a data file is not what its digest says."""
    values = dict(written)
    if (name := values.pop("family", None)) != kind.family:  # type: ignore[attr-defined]
        raise InputError("recipe.yaml: family", name, f"this is no run of the {kind.family} family")  # type: ignore
    digests = values.pop("digests", {})
    values.pop("prompts_changed", None)
    plain = dict(values)
    try:
        method, knobs, settings = values.pop("method"), values.pop("knobs"), kind(**values)
    except (KeyError, TypeError) as error:
        raise InputError("recipe.yaml", str(error), "it does not describe a run of this version") from error
    check_values({"method": str}, {"method": method}, "recipe.yaml: ")
    if not isinstance(knobs, dict):
        raise InputError("recipe.yaml: knobs", knobs, "use settings by name")
    check_settings(settings, "recipe.yaml: ")
    check_digests(digests, plain)
    given = {k: tuple(v) for k, v in vars(settings).items() if isinstance(v, list)}
    files = tuple(Path(x) for x in given.get("method_file", ()))
    read = replace(settings, **given | ({"method_file": files} if files else {}))  # type: ignore[type-var]
    (allow if trust else check)(vars(read))
    return method, knobs, read


def comparable(written: dict[str, Any], *, evaluation: bool = False) -> dict[str, Any]:
    """The part of a recipe that must not change between stop and resume, or (with `evaluation`) between runs that are
    compared; digests are compared when it is read."""
    free = (*MAY_CHANGE, "digests")
    kept = {k: v for k, v in written.items() if k not in free and (evaluation or not k.startswith(EVALUATION))}
    return json_value(json_text(kept, exact=True))


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
    if not sound(saved):
        raise InputError("checkpoint", str(folder), "its state.json holds no run: delete this folder, or put it back")
    check_same(folder, saved.state["recipe"], comparable(written))
    return saved


def stated(run: RunDirectory) -> dict[str, Any]:
    """What a run's recipe.yaml states. Raises InputError where that is something else than the newest checkpoint was
    made with, before anything is made by it."""
    written, folder = run.recipe(), latest_checkpoint(run.path)
    if folder is not None:
        try:
            old = json_value((folder / "state.json").read_bytes())["recipe"]
            given = comparable({k: v for k, v in written.items() if k in old})
            old = {k: old[k] for k in given}
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return written  # what is wrong with the checkpoint is said when it is loaded
        check_same(folder, old, given)
    return written


def check_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse a recipe with other settings than those that the checkpoint in `folder` was made with."""
    if changed := differences(old, {k: v for k, v in new.items() if k in old}):
        raise InputError(
            "recipe.yaml", ", ".join(changed), f"the checkpoint of step {int(folder.name)} was made with other "
            "settings (left of the arrows): put them back, or start a new run; only "
            f"{', '.join(MAY_CHANGE)} and {EVALUATION}… may change",
        )  # fmt: skip


def sound(saved: Checkpoint) -> bool:
    """Whether a checkpoint holds what `keep` writes; what the loop remembers is for the loop to see."""
    state = saved.state
    if not all(isinstance(state.get(name, {}), dict) for name in ("recipe", "loop", "ledger")):
        return False
    known, began = state.get("ledger", {}).values(), state.get("began", saved.step)
    prints = all(isinstance(x, dict) and type(x.get("rows")) is int and "sha256" in x for x in known)  # type: ignore
    return {"recipe", "loop"} <= state.keys() and prints and type(began) is int and 0 <= began <= saved.step


def made_checkpoint(run: RunDirectory, written: dict[str, Any]) -> Checkpoint:
    """The newest checkpoint of a run. Raises InputError also where there is none."""
    saved = checkpoint_of(run, written)
    if saved is None:
        raise InputError("run", str(run.path), "it has no checkpoint yet: go on with `anypolicy resume`")
    return saved


def keep(
    run: RunDirectory, at: Position, tensors: dict[str, dict[str, Tensor]], loop: dict[str, Any],
    written: dict[str, Any], **more: Any,
) -> None:  # fmt: skip
    """Write a checkpoint of a run: tensors and state of its loop, its recipe, and what the ledger holds."""
    state = {"loop": loop, "recipe": comparable(written), "began": at.began, "ledger": run.fingerprints(at.step)}
    save_checkpoint(run.path, at.step, tensors, state | more)


@contextmanager
def put_back(
    saved: Checkpoint, fresh: dict[str, Any] | None = None
) -> Generator[tuple[dict[str, Any], dict[str, dict[str, Tensor]]]]:
    """State and tensors of the loop in a checkpoint. Raises InputError where the state is not `alike` a `fresh` one of
    the loop, or where the block finds that they do not fit."""
    try:
        if not alike(fresh, saved.state["loop"]):
            raise ValueError("other fields")
        yield saved.state["loop"], saved.tensors
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        told = f"it does not hold the state of this run ({type(error).__name__}: {error}): delete it, or put it back"
        raise InputError("checkpoint", f"step {saved.step}", told) from error


def alike(fresh: Any, saved: Any) -> bool:
    """Whether a saved state has all fields of a fresh one, each with a value of its type. What is None at first, or has
    no fields, may become anything."""
    if fresh is None:
        return True
    if isinstance(fresh, dict):
        return saved is None or (
            isinstance(saved, dict) and all(name in saved and alike(own, saved[name]) for name, own in fresh.items())
        )
    if isinstance(fresh, list | tuple):
        return saved is None or isinstance(saved, list | tuple)
    if isinstance(fresh, float):
        return type(saved) in (int, float)
    return type(saved) is type(fresh) and (type(saved) is not int or abs(saved) < 2**63)


def restored(
    run: RunDirectory, written: dict[str, Any], steps: int, fresh: dict[str, Any],
    restore: Callable[[dict[str, Any], dict[str, dict[str, Tensor]]], object],
) -> Position:  # fmt: skip
    """Give the newest checkpoint, if there is one, to `restore` (state, tensors), and cut the ledger to it; where to
    begin. `fresh` is the loop's state as it is."""
    if saved := checkpoint_of(run, written):
        with put_back(saved, fresh) as (state, tensors):
            restore(state, tensors)
    return rewind(run, saved, written, steps)


def rewind(run: RunDirectory, saved: Checkpoint | None, written: dict[str, Any], steps: int) -> Position:
    """Cut the ledger to a checkpoint (or to nothing), for a run of `steps` steps by this recipe; where to begin. Rows
    that were lost or changed since are reported, and entered as an event."""
    at = Position(0, 0) if saved is None else Position(saved.step, saved.state.get("began", saved.step))
    if steps < at.step:
        raise InputError("steps", steps, f"the run has {at.step} steps already: use at least as many")
    lost = run.truncate_to(at, None if saved is None else saved.state.get("ledger"))
    for why in lost:
        print(f"warning: {why}; the run goes on with what is there", file=sys.stderr)
        run.append({"step": at.step, "event": "lost", "why": why})
    if run.recipe() != written:
        run.rewrite_recipe(written)
    return at
