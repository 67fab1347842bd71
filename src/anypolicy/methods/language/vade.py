"""VADE: variance-aware dynamic sampling by online difficulty estimation.

Paper: arXiv 2511.18902, figure 2 (posterior, information gain, two-scale update), tables 1–2.
Idea: keep a Beta posterior of every prompt's success rate, draw from it (Thompson), roll out the prompts whose drawn
p (1 − p)² is largest; forget fast what was just visited and slowly the rest.
Changes: sampler only.
Silent: how the posterior begins. `init="flat"` is a uniform prior; the published curves start higher than that can
give, so `init="warm"` visits every prompt once first (the visits are ordinary training steps and count).
Differs: no code was published; the forgetting rates 0.2 and 0.999 are read off the numbers of figure 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.data.records import Group
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.methods.language.grpo import grpo
from anypolicy.runs.seeds import numpy_generator
from anypolicy.stages.needs import Needs
from anypolicy.stages.recipe import GroupRecipe

Array = NDArray[np.float64]
Gain = Literal["p(1-p)^2", "p(1-p)"]


def information_gain(p: Array, gain: Gain = "p(1-p)^2") -> Array:
    """I(p) = p (1 − p)², largest at p = 1/3; the ablation is p (1 − p)."""
    return p * (1 - p) ** 2 if gain == "p(1-p)^2" else p * (1 - p)


def update_counts(
    alpha: Array, beta: Array, chosen: NDArray[np.int64], right: Array, wrong: Array, fast: float, slow: float
) -> tuple[Array, Array]:
    """chosen: α ← fast·α + right, β ← fast·β + wrong; all others: α ← slow·α, β ← slow·β (figure 2)."""
    if not (np.isfinite(right).all() and np.isfinite(wrong).all() and (right >= 0).all() and (wrong >= 0).all()):
        raise InputError("correct", right.tolist(), "counts of right and wrong answers must be finite and not negative")
    new = alpha * slow, beta * slow
    new[0][chosen] = fast * alpha[chosen] + right
    new[1][chosen] = fast * beta[chosen] + wrong
    return new


class ThompsonOrder:
    """Pseudo-counts of every prompt and the prompts drawn from them."""

    def __init__(self, settings: "ThompsonSampler", prompts: int, seed: int):
        self.settings, self.seed = settings, seed
        self.alpha, self.beta = np.zeros(prompts), np.zeros(prompts)
        self.visits = np.zeros(prompts, np.int64)

    def draw(self, n: int, step: int, round: int) -> list[int]:
        """The n prompts with the largest information gain of one posterior draw each; ties at random. All of them once
        if there are fewer than n."""
        rng = numpy_generator(self.seed, "sampler", step, round)
        a, b = self.alpha + 1, self.beta + 1
        p = a / (a + b) if self.settings.greedy else rng.beta(a, b)
        gain = information_gain(p, self.settings.gain)
        if self.settings.init == "warm":
            gain = np.where(self.visits == 0, np.inf, gain)
        return np.lexsort((rng.random(len(gain)), -gain))[:n].tolist()

    def observe(self, groups: Sequence[Group]) -> None:
        right: dict[int, list[bool]] = {}
        for group in groups:
            verdicts = [t.correct for t in group.trajectories if t.correct is not None]
            if verdicts:
                right.setdefault(group.position, []).extend(verdicts)
        chosen = np.array(list(right), np.int64)
        good = np.array([float(sum(v)) for v in right.values()])
        bad = np.array([float(len(v) - sum(v)) for v in right.values()])
        s = self.settings
        self.alpha, self.beta = update_counts(self.alpha, self.beta, chosen, good, bad, s.fast, s.slow)
        self.visits[chosen] += 1

    def state(self) -> dict[str, Any]:
        return {"alpha": self.alpha.tolist(), "beta": self.beta.tolist(), "visits": self.visits.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        self.alpha, self.beta = np.array(state["alpha"]), np.array(state["beta"])
        prompts, self.visits = self.visits.shape, np.array(state["visits"], np.int64)
        for counts in (self.alpha, self.beta, self.visits):
            if counts.shape != prompts or counts.dtype.kind not in "fi" or not (counts >= 0).all():
                raise ValueError(f"it counts {counts.shape} prompts, the task has {prompts}")

    def metrics(self) -> dict[str, float]:
        mean = (self.alpha + 1) / (self.alpha + self.beta + 2)
        return {"coverage": float((self.visits > 0).mean()), "difficulty/mean": float(1 - mean.mean())}


@dataclass(frozen=True)
class ThompsonSampler:
    """Thompson sampling of the information gain; `fast` forgets visited prompts, `slow` the others."""

    needs = Needs(verifier=True)
    fast: float = 0.2
    slow: float = 0.999
    gain: Gain = "p(1-p)^2"
    init: Literal["flat", "warm"] = "flat"
    greedy: bool = False

    def begin(self, prompts: int, seed: int) -> ThompsonOrder:
        return ThompsonOrder(self, prompts, seed)


@method(
    Card(
        title="Variance-Aware Dynamic Sampling via Online Sample-Level Difficulty Estimation",
        paper="arXiv 2511.18902",
        year=2025,
        family="language",
        idea="choose prompts before rollout by Thompson sampling of p (1 − p)² on a forgetting Beta posterior",
        changes=("sampler",),
        composes_with="every group method; with NGRPO note that it rarely draws prompts that nobody solves",
        claim="at equal rollouts, more groups with a signal and higher success over all prompts than uniform epochs",
        example="anypolicy train vade --task tabular-lock:start=mixture,length=2 --steps 60",
        look_at="probe/success: 0.32 to 0.68 with seed 0",
        metrics={"difficulty/mean": "mean over all prompts of 1 − posterior mean success"},
    )
)
def vade(
    group_size: knobs.GroupSize = 8,
    fast: Annotated[float, Knob("what counts of a visited prompt are multiplied by", least=0, most=1)] = 0.2,
    slow: Annotated[float, Knob("what counts of the other prompts are multiplied by", least=0, most=1)] = 0.999,
    gain: Annotated[Gain, Knob("what a prompt of success rate p is worth")] = "p(1-p)^2",
    init: Annotated[Literal["flat", "warm"], Knob("a flat prior, or every prompt visited once first")] = "flat",
    greedy: Annotated[bool, Knob("the best prompts by their means instead of by draws")] = False,
) -> GroupRecipe:
    """GRPO on prompts chosen by their estimated difficulty."""
    return replace(grpo(group_size), sampler=ThompsonSampler(fast, slow, gain, init, greedy))
