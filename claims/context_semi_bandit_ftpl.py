"""FTPL's claim: with an oracle instead of weights, the penalty makes auditors object in a quarter of the rounds or fewer.

Half-spaces: k = 4 cases a round, 62 rules, three auditors, α = 0.1, γ = 0.5 (the stream `halfspaces`), T = 2,000, noise 1/0.05 at 16
separators, 50 draws for what auditors see, at most 40 for 1/q. C = T^¼ against C = 0.
The number of separators is swept with the noise left alone; what it does is reported.
"""

from typing import Any

import numpy as np

from anypolicy.evidence.checks import Amendment, Check
from anypolicy.loops.one_sided import full_label_weights
from anypolicy.loops.one_sided import run as protocol
from anypolicy.methods.exact.context_semi_bandit_ftpl import ContextSemiBanditFTPL, Finite
from anypolicy.parts.fairness import Panel
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.one_sided import load

CLAIM = "a penalty of T^¼ cuts the rounds in which auditors object to a quarter, with errors still below 0.35 (arXiv 2206.04475)"
SEEDS = 10
ARMS = ("free", "penalised", "free-8", "penalised-8", "free-32", "penalised-32", "hedge")
CURVE = "share of rounds with a report so far"
CURVE_ARMS = ("free", "penalised")
T, ALPHA = 2000, 0.1


def run(arm: str, seed: int) -> dict[str, Any]:
    stream = load("halfspaces", T, 4, seed)
    if arm == "hedge":
        pi = np.einsum("tkn,tn->tk", stream.accept, full_label_weights(stream))
        return {"error": float(np.abs(pi - stream.y).mean())}
    kind, _, separators = arm.partition("-")
    z = stream.separators[: int(separators or 16)]
    c = T**0.25 if kind == "penalised" else 0.0
    learner = ContextSemiBanditFTPL(Finite(stream.rules, z), len(z), c, 0.05, 50, 40, numpy_generator(seed, "claim"))
    history = protocol(stream, learner, Panel(stream.auditors, ALPHA, 0.5).limits(stream.x), ALPHA)
    at = np.linspace(T / 40, T, 40).astype(int)
    share = history.violated.cumsum()[at - 1] / at
    return {"reports": history.violations, "error": float(history.errors.mean()) / 4,
            "curve": [[int(t), float(v)] for t, v in zip(at, share, strict=True)]}  # fmt: skip


CHECKS = [
    Check("a penalty of T^¼ cuts the rounds with a report to a quarter", "ratio > 4",
          lambda r: r["free"]["reports"] / r["penalised"]["reports"], above=4.0, refuted=1.0, kind="ratio"),
    Check("its errors with the penalty", "error rate < 0.35", lambda r: r["penalised"]["error"], below=0.35, kind="share"),
    Check("one-sided labels, no penalty, against all labels", "difference of error rates < 0.06",
          lambda r: r["free"]["error"] - r["hedge"]["error"], below=0.06, kind="share", core=False),
    Check("8 separators", "ratio > 2", lambda r: r["free-8"]["reports"] / r["penalised-8"]["reports"], above=2.0, kind="ratio",
          core=False),
    Check("32 separators", "ratio > 2", lambda r: r["free-32"]["reports"] / r["penalised-32"]["reports"], above=2.0, kind="ratio",
          core=False),
]  # fmt: skip
NOTE = "the penalty divides the rounds with a report by {0:.1f}, where more than 4 was asked; its error rate is {1:.2f}"
AMENDMENTS = (
    Amendment("checks have kinds: factors are judged as ratios, error rates need ten seeds", "2026-12-01", "after a look",
              "a ratio varies about a geometric mean, and a t interval of few shares decides too often"),
    Amendment("a penalty without effect refutes", "2026-12-01", "after a look",
              "it is the rule by which the claim is refuted, and no check had it"),
    Amendment(
        "ten seeds instead of five",
        "2026-12-01",
        "after a look",
        "an error rate is a share, which needs ten",
    ),
)  # fmt: skip
