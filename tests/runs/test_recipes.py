"""A run's recipe: written and read back, compared before the run goes on, the ledger cut to where it does."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from anypolicy.errors import InputError
from anypolicy.runs.checkpoint import save_checkpoint
from anypolicy.runs.directory import RunDirectory
from anypolicy.runs.recipes import (
    checkpoint_of,
    comparable,
    differences,
    made_checkpoint,
    recipe_of,
    rewind,
    settings_from,
)


@dataclass(frozen=True)
class Settings:
    task: str
    lr: float = 0.1
    steps: int = 10
    out: Path | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    method_file: tuple[Path, ...] = ()


GIVEN = Settings("lock", out=Path("here"), method_file=(Path("mine.py"),))


def save(run: RunDirectory, step: int, written: dict) -> None:
    save_checkpoint(run.path, step, {"x": {"a": torch.zeros(1)}}, {"recipe": comparable(written)})


def test_what_is_written_gives_the_settings_again():
    written = recipe_of("grpo", {"group_size": 4}, GIVEN)
    assert written == {"method": "grpo", "knobs": {"group_size": 4}, "task": "lock", "lr": 0.1, "steps": 10,
                       "trackers": ["tensorboard"], "method_file": ["mine.py"]}  # fmt: skip
    assert settings_from(Settings, written) == (
        "grpo",
        {"group_size": 4},
        Settings("lock", method_file=(Path("mine.py"),)),
    )


@pytest.mark.parametrize("wrong", [{"method": None}, {"unknown": 1}, {"trackers": None}])
def test_what_describes_no_run_is_refused(wrong):
    written = recipe_of("grpo", {}, GIVEN) | wrong
    if wrong == {"method": None}:
        del written["method"]
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        settings_from(Settings, written)


def test_differences_name_the_fields():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 → 3", "c: None → 4"]


def test_only_what_decides_the_numbers_must_stay(tmp_path):
    written = recipe_of("grpo", {"clip": (0.1, 0.2)}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        assert checkpoint_of(run, written) is None
        with pytest.raises(InputError, match="no checkpoint yet"):
            made_checkpoint(run, written)
        save(run, 4, written)
        longer = written | {"steps": 20, "trackers": [], "eval_every": 3}
        assert made_checkpoint(run, longer).step == 4
        with pytest.raises(InputError, match=r"lr: 0\.1 → 0\.5"):
            checkpoint_of(run, written | {"lr": 0.5})


def test_the_ledger_is_cut_and_the_recipe_renewed(tmp_path):
    written = recipe_of("grpo", {}, GIVEN)
    with RunDirectory.create(tmp_path / "run", written) as run:
        for step in range(6):
            run.append({"step": step})
        save(run, 4, written)
        saved = made_checkpoint(run, written)
        with pytest.raises(InputError, match="4 steps already"):
            rewind(run, saved, written | {"steps": 3}, 3)
        assert len(run.read()) == 6 and run.recipe() == written
        assert rewind(run, saved, written | {"steps": 20}, 20) == 4
        assert [row["step"] for row in run.read()] == [0, 1, 2, 3] and run.recipe()["steps"] == 20
        assert rewind(run, None, written, 10) == 0
        assert run.read() == []
