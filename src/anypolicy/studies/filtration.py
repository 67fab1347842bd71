"""Which filtration rule fits a reward model? R² between reward and true score on the responses that each rule keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from anypolicy.errors import InputError, checked, settled
from anypolicy.families import language as training
from anypolicy.parts.filtration import Rule, equal_count_means, fit_line, keep
from anypolicy.runs.files import check_unused, make_place, write_text
from anypolicy.runs.seeds import generator
from anypolicy.runs.strict_json import json_text
from anypolicy.tasks.language.verify import verifies, verify
from anypolicy.tasks.lines import json_lines

RULES: tuple[tuple[str, Rule, float], ...] = (
    ("none", "none", 0.0), ("best-of-n", "best-of-n", 0.0), ("best-random", "best-random", 0.0),
    ("best-worst", "best-worst", 0.0), ("power 1", "power", 1.0), ("power 2", "power", 2.0), ("power 3", "power", 3.0),
)  # fmt: skip


class Scored(NamedTuple):
    """One response: its prompt's name, the reward model's reward and the true score (NaN: no reward)."""

    prompt: str
    reward: float
    score: float


class Row(NamedTuple):
    """One rule: responses kept, R² per response and over groups of equal count (NaN: undefined), why not measured."""

    rule: str
    kept: int
    r_squared: float
    binned: float
    note: str = ""


@dataclass(frozen=True)
class Filtration:
    """The table of all rules on the same responses, and the rule with the highest R² (None: it cannot be said)."""

    rows: list[Row]
    by: Literal["sample", "bins"]
    bins: int

    def value(self, row: Row) -> float:
        return row.r_squared if self.by == "sample" else row.binned

    @property
    def pick(self) -> str | None:
        """The highest defined R² among at least two; rules of equal R² cannot be told apart."""
        ranked = sorted((self.value(r) for r in self.rows if not math.isnan(self.value(r))), reverse=True)
        if len(ranked) < 2 or ranked[0] == ranked[1]:
            return None
        return next(r.rule for r in self.rows if self.value(r) == ranked[0])

    def __str__(self) -> str:
        def number(x: float) -> str:
            return "undefined" if math.isnan(x) else f"{x:.3f}"

        lines = [f"{'rule':<12} {'kept':>6} {'R² per sample':>14} {f'R² in {self.bins} groups':>16}"]
        for r in self.rows:
            lines.append(
                f"{r.rule:<12} {r.kept:>6} {number(r.r_squared):>14} {number(r.binned):>16}  {r.note}".rstrip()
            )
        said = f"pick: {self.pick} (highest R² {'per sample' if self.by == 'sample' else 'in groups'})"
        return "\n".join([*lines, "", said if self.pick else "no pick: R² does not tell these rules apart"])


@checked
def filtration_table(
    scored: Sequence[Scored], *, bins: int = 10, by: Literal["sample", "bins"] = "sample", seed: int = 0,
    with_replacement: bool = False, n_keep: int = 2,
) -> Filtration:  # fmt: skip
    """R² of every rule on the same responses (arXiv 2409.06957, section 4).

    Rules keep what training would: best and worst, or best and a random other; `with_replacement` draws `n_keep` per
    prompt from the rules' weights. A rule whose kept true scores are all equal has no R² and is not ranked; the powers
    need rewards in [−1, 1].
    """
    if bins < 2 or n_keep < 1:
        raise InputError("bins" if bins < 2 else "n_keep", min(bins, n_keep), "use at least 2 bins and 1 kept response")
    if seed < 0:
        raise InputError("seed", seed, "use 0 or more")
    names = {name: i for i, name in enumerate(dict.fromkeys(s.prompt for s in scored))}
    group = torch.tensor([names[s.prompt] for s in scored], dtype=torch.long)
    reward = torch.tensor([s.reward for s in scored], dtype=torch.float64)
    score = torch.tensor([s.score for s in scored], dtype=torch.float64)
    rows: list[Row] = []
    for name, rule, power in RULES:
        if rule == "power" and bool((reward.abs() > 1).any()):
            rows.append(Row(name, 0, math.nan, math.nan, "needs rewards in [-1, 1]"))
            continue
        kept = keep(
            rule, reward, group, generator(seed, "filtration", name), with_replacement=with_replacement,
            n_keep=n_keep, power=power,
        )  # fmt: skip
        x, s = reward[kept], score[kept]
        each = fit_line(x, s).r_squared
        grouped = fit_line(*equal_count_means(x, s, bins)).r_squared if len(kept) else math.nan
        rows.append(Row(name, len(kept), each, grouped, "all true scores are equal" if math.isnan(each) else ""))
    return Filtration(rows, by, bins)


def read_scores(path: str | Path) -> list[Scored]:
    """SCORES.jsonl: one response a line with prompt, reward and score (a number, or true and false)."""
    out: list[Scored] = []
    for where, row in json_lines(str(path), "prompt, reward and score", "scores"):
        for name in ("prompt", "reward", "score"):
            if name not in row:
                raise InputError(str(path), where, f"it has no {name!r} (fields: {', '.join(row)})", choices=row)
        reward, score = row["reward"], row["score"]
        if reward is None:
            continue
        if not isinstance(reward, int | float) or not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(str(path), where, "reward and score must be numbers (reward null: no reward)")
        out.append(Scored(json_text(row["prompt"]), float(reward), float(score)))
    if not out:
        raise InputError("scores", str(path), "it has no response with a reward")
    return out


def collect_scores(
    method: str, settings: training.Settings, knobs: dict[str, dict[str, Any]] | None = None
) -> tuple[Path, list[Scored]]:
    """Sample responses of the starting policy to `prompts` training prompts; write rewards and true scores to `out`.

    All rules are then measured on these same responses of one policy.
    """
    settings = settled(settings)
    if not settings.reward and settings.reward_model is None:
        raise InputError("reward_model", None, "give the reward to be judged: --reward-model or --reward")
    out = settings.out or Path("scores.jsonl")
    check_unused(out)
    make_place(out)
    p = training.plan(method, settings, knobs)
    if not verifies(p.task):
        raise InputError("task", p.task.name, "rewards are compared with true scores: give every row an 'answer'")
    if (p.settings.prompts or 0) > len(p.task.train):
        raise InputError("prompts", p.settings.prompts, f"the task has {len(p.task.train)} training prompts")
    world = training.world_of(p)
    rows: list[dict[str, Any]] = []
    loop = training.group_loop(p, world)
    for group in loop.sample(0):
        prompt = loop.world.task.train[group.position]
        given = [(prompt, t.response, world.policy.decode(t.response)) for t in group.trajectories]
        for t, score in zip(group.trajectories, verify(p.task, given), strict=True):
            reward = t.reward if math.isfinite(t.reward) else None
            rows.append({"prompt": prompt.id, "reward": reward, "score": score.reward, "correct": score.correct})
    write_text(out, "".join(json_text(row) + "\n" for row in rows))
    return out, read_scores(out)
