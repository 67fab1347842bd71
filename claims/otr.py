"""OTR's claim: fine-tuned on noisy expert data, a policy that learns by one-token rollouts refuses improbable tokens.

Part A is the theory of the method on random logits: the expected loss descends along
(1 − β) π′(x) (e_x − π) + β (π′ − π); at κ = 1 that is (1 − β) × DFT; the mean over draws goes to it.

Part B: a two-layer transformer of width 64 learns two tasks (1,200 steps × 96): sort n digits (n = 2 … 4 clean; n = 5, 6
with every target digit replaced by a random one with probability 0.3) and reverse 3 … 6 digits. Then it is fine-tuned on
sorting alone, n = 5, 6, on 2,000 examples with 15 % of the target digits replaced, 200 steps × 64, at two learning
rates. Metrics: accuracy on clean held-out problems at temperature 1 ("sampled") and greedy; the same on easy sorting and
on reversing (retention); mean entropy of a token.

Expected: sampled accuracy at least 30 points above SFT (which reproduces the noise), within 3 points of DFT; both are
reported. The claim itself says 20 points and is refuted below, or if OTR with κ = 1, β = 0 is not DFT but for the noise of
sampling (3 points). The paper says that OTR also keeps other tasks better than SFT; that is reported with its sign.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from anypolicy.compose import compose
from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Request, Sampling
from anypolicy.engines.native import NativeEngine
from anypolicy.evidence.checks import Amendment, Check
from anypolicy.families.language import fit
from anypolicy.methods.supervised.otr import draw, expected_loss, exploration, one_token_loss
from anypolicy.policies.language.causal_lm import CausalLM
from anypolicy.policies.language.transformer import small_transformer
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.tasks.language.base import Score

CLAIM = (
    "on noisy expert data OTR's samples are right at least 20 points more often than SFT's, and its theory holds: the gradient "
    "in expectation and over draws is the formula's, and with κ = 1, β = 0 it is DFT (arXiv 2509.26313)"
)
SEEDS = 5
SETTINGS = {
    "sft": ("sft", {}),
    "dft": ("otr", {"exact": True, "kappa": 1.0, "beta": 0.0}),
    "otr": ("otr", {"samples": 64}),
    "otr-exact": ("otr", {"exact": True}),
    "otr-beta-0": ("otr", {"samples": 64, "beta": 0.0}),
    "otr-kappa-1-beta-0": ("otr", {"samples": 64, "kappa": 1.0, "beta": 0.0}),
}
RATES = {"1e-4": 1e-4, "3e-4": 3e-4}
ARMS = ("theory", "base", *(f"{name}@{rate}" for rate in RATES for name in SETTINGS))
CURVE = "sampled accuracy, sorting 5 and 6 digits, lr 3e-4"
CURVE_ARMS = ("sft@3e-4", "dft@3e-4", "otr@3e-4", "otr-exact@3e-4", "otr-beta-0@3e-4")
SORT, REVERSE, EQUALS, END, PAD = range(10, 15)
STEPS, BATCH = 200, 64


class Digits:
    """Prompts with reference responses; nothing is held out, the claim measures by itself."""

    name, max_tokens, heldout = "digits", 8, ()

    def __init__(self, prompts: list[Prompt]):
        self.train = prompts

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        correct = tuple(response.tolist()) == prompt.answer
        return Score(float(correct), correct)


def problems(
    rng: np.random.Generator, n: int, kind: int, lengths: Sequence[int], noise: float, name: str
) -> list[Prompt]:
    """n prompts; each digit of the reference is replaced by a random one with probability `noise`."""
    out: list[Prompt] = []
    for i in range(n):
        digits = rng.integers(0, 10, int(rng.choice(lengths)))
        right = np.sort(digits) if kind == SORT else digits[::-1]
        shown = np.where(rng.random(len(right)) < noise, rng.integers(0, 10, len(right)), right)
        tokens = (kind, *digits.tolist(), EQUALS)
        out.append(
            Prompt(f"{name}-{i}", tokens=tokens, answer=(*right.tolist(), END), reference=(*shown.tolist(), END))
        )
    return out


@functools.lru_cache(maxsize=1)
def base(seed: int) -> CausalLM:
    """The policy before fine-tuning: it knows easy sorting and reversing, and has seen hard sorting through noise."""
    policy = small_transformer(
        vocabulary=15, layers=2, width=64, heads=4, context_length=24, seed=seed, eos_id=END, pad_id=PAD
    )
    rng, steps, batch = numpy_generator(seed, "base"), 1200, 96
    each = steps * batch // 4
    prompts = [
        *problems(rng, each, SORT, (2, 3, 4), 0.0, "easy"),
        *problems(rng, each, SORT, (5, 6), 0.3, "hard"),
        *problems(rng, 2 * each, REVERSE, (3, 4, 5, 6), 0.0, "reverse"),
    ]
    for _ in fit(recipe("sft", {}, 1e-3), Digits(prompts), policy, steps=steps, prompts=batch, seed=seed):
        pass
    return policy


def recipe(method: str, knobs: dict, lr: float):
    """A method with another learning rate."""
    made = compose(method, {method: knobs}).recipe
    return replace(made, optimiser=replace(made.optimiser, lr=lr))


def accuracy(policy: CausalLM, prompts: list[Prompt], temperature: float, seed: int) -> float:
    """Share of right answers, one a prompt."""
    requests = [Request(policy.encode(p)) for p in prompts]
    answers = NativeEngine(policy).generate(requests, Sampling(8, temperature), generator(seed, "measure"))
    return float(
        np.mean([tuple(s.response.tolist()) == p.answer for p, [(s, _)] in zip(prompts, answers, strict=True)])
    )


@torch.no_grad()
def entropy(policy: CausalLM, prompts: list[Prompt]) -> float:
    """Mean entropy of a response token along clean answers, in nats."""
    values = []
    for n in (5, 6):
        rows = [p for p in prompts if len(p.answer) == n + 1]
        tokens = torch.tensor([(*p.tokens, *p.answer) for p in rows])
        logp = policy.module(input_ids=tokens[:, :-1]).logits[:, -n - 1 :].double().log_softmax(-1)
        values.append(-(logp.exp() * logp).sum(-1).flatten())
    return float(torch.cat(values).mean())


def measure(policy: CausalLM, seed: int) -> dict[str, float]:
    """All metrics on 600 fresh clean problems of each kind."""
    rng = numpy_generator(seed, "measure")
    hard = problems(rng, 600, SORT, (5, 6), 0.0, "hard")
    easy = problems(rng, 600, SORT, (2, 3, 4), 0.0, "easy")
    other = problems(rng, 600, REVERSE, (3, 4, 5, 6), 0.0, "reverse")
    out = {"entropy": entropy(policy, hard)}
    for name, prompts in (("hard", hard), ("easy", easy), ("reverse", other)):
        out[f"{name}_sampled"] = accuracy(policy, prompts, 1.0, seed)
        out[f"{name}_greedy"] = accuracy(policy, prompts, 0.0, seed)
    return out


def theory(seed: int) -> dict[str, float]:
    """Largest deviations of part A on random logits over 50 tokens, in float64."""
    rng = generator(seed, "theory")
    z = torch.randn(64, 50, dtype=torch.float64, generator=rng).mul(2).requires_grad_()
    x = torch.randint(50, (64,), generator=rng)
    kappa, beta = 1.3, -0.1

    def slope(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss.sum(), z)[0]

    def hit(p: torch.Tensor) -> torch.Tensor:
        return p.gather(-1, x[:, None])

    e, pi, explored = torch.eye(50, dtype=torch.float64)[x], z.detach().softmax(-1), exploration(z, kappa)
    direction = (1 - beta) * hit(explored) * (e - pi) + beta * (explored - pi)
    dft = slope(-hit(pi) * hit(z.log_softmax(-1)))
    exact = slope(expected_loss(z, x, kappa, beta))
    total, n = torch.zeros_like(exact), 2000
    squares = torch.zeros_like(exact)
    for _ in range(n):
        uniform = torch.rand(64, 64, dtype=torch.float64, generator=rng)
        one = slope(one_token_loss(z, x, draw(explored, uniform), beta))
        total, squares = total + one, squares + one**2
    error = ((squares / n - (total / n) ** 2) / n).sqrt()
    return {
        "expectation": float((exact + direction).abs().max()),
        "dft": float((slope(expected_loss(z, x, 1.0, beta)) - (1 - beta) * dft).abs().max()),
        "draws_z": float((((total / n - exact) / error) ** 2).mean().sqrt()),
    }


def run(arm: str, seed: int) -> dict:
    if arm == "theory":
        return theory(seed)
    if arm == "base":
        return measure(base(seed), seed)
    name, _, rate = arm.partition("@")
    policy = copy.deepcopy(base(seed))
    task = Digits(problems(numpy_generator(seed, "expert"), 2000, SORT, (5, 6), 0.15, "expert"))
    probe = problems(numpy_generator(seed, "probe"), 300, SORT, (5, 6), 0.0, "probe")
    curve = [(0, accuracy(policy, probe, 1.0, seed))]
    steps = fit(recipe(*SETTINGS[name], RATES[rate]), task, policy, steps=STEPS, prompts=BATCH, seed=seed)
    for step, _ in enumerate(steps, 1):
        if step % 25 == 0:
            curve.append((step, accuracy(policy, probe, 1.0, seed)))
    return {**measure(policy, seed), "curve": curve}


def gap(a: str, b: str, metric: str = "hard_sampled"):
    return lambda r: r[a][metric] - r[b][metric]


def worst_against_best(r: dict) -> float:
    """OTR at its worse learning rate against SFT at its better one."""
    return min(r[f"otr@{x}"]["hard_sampled"] for x in RATES) - max(r[f"sft@{x}"]["hard_sampled"] for x in RATES)


CHECKS = [
    Check("A: expected gradient, largest deviation from the formula", "< 1e-10", lambda r: r["theory"]["expectation"], below=1e-10,
          kind="each"),
    Check("A: κ = 1 is (1 − β) × DFT, largest deviation", "< 1e-10", lambda r: r["theory"]["dft"], below=1e-10, kind="each"),
    Check("A: draws against the expectation, root mean square of z (1 if they agree)", "< 1.1", lambda r: r["theory"]["draws_z"],
          below=1.1),
    Check("B: OTR's worse learning rate above SFT's better one, sampled", "difference > 0.20", worst_against_best, above=0.2,
          refuted=0.2, kind="share"),
    *(check for x in RATES for check in (
        Check(f"B: OTR with κ = 1, β = 0 above DFT − 3 points, lr {x}", "difference > −0.03",
              gap(f"otr-kappa-1-beta-0@{x}", f"dft@{x}"), above=-0.03, refuted=-0.03, kind="share"),
        Check(f"B: and below DFT + 3 points, lr {x}", "difference < 0.03",
              gap(f"otr-kappa-1-beta-0@{x}", f"dft@{x}"), below=0.03, refuted=0.03, kind="share"))),
    *(Check(f"OTR above SFT, sampled, lr {x}", "difference > 0.30", gap(f"otr@{x}", f"sft@{x}"), above=0.3, kind="share", core=False)
      for x in RATES),
    *(Check(f"OTR within 3 points of DFT, lr {x}", "|difference| < 0.03", lambda r, x=x: abs(gap(f"otr@{x}", f"dft@{x}")(r)),
            below=0.03, kind="share", core=False) for x in RATES),
    *(Check(f"sampling 64 tokens against the exact form, lr {x}", "|difference| < 0.03",
            lambda r, x=x: abs(gap(f"otr@{x}", f"otr-exact@{x}")(r)), below=0.03, kind="share", core=False) for x in RATES),
    *(Check(f"the paper's claim: retention of reversing above SFT, sampled, lr {x}", "difference > 0",
            gap(f"otr@{x}", f"sft@{x}", "reverse_sampled"), above=0.0, kind="share", core=False) for x in RATES),
    *(Check(f"β = −0.1 sharpens: entropy below that of β = 0, lr {x}", "difference < 0",
            gap(f"otr@{x}", f"otr-beta-0@{x}", "entropy"), below=0.0, core=False) for x in RATES),
]  # fmt: skip
NOTE = (
    "its samples are right {3:.2f} more often than SFT's; on the other task, which the paper says it keeps better, its accuracy "
    "differs from SFT's by {14:.2f} and {15:.2f} at the two learning rates"
)
AMENDMENTS = (
    Amendment("checks have kinds: accuracies need ten seeds, identities hold on every seed", "2026-12-01", "after a look",
              "a t interval of few shares decides too often"),
    Amendment("less than 20 points above SFT refutes, and so do more than 3 from DFT with κ = 1, β = 0", "2026-12-01",
              "after a look", "it is the rule by which the claim is refuted; without it nothing would"),
    Amendment("the sentence says what the theory is", "2026-12-01", "after a look",
              "the sentence and the decisive checks now say the same"),
)  # fmt: skip
