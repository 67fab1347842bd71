"""The online–offline study's claim: with the same loss, pairs of the live policy beat the pairs it began with.

Log-linear policies over 300 answers to 200 prompts, misspecified for a quadratic score; 600 offline pairs; a proxy
fitted to them labels the online pairs. Online: 3000 steps of 32 pairs, learning rate 1, β = 0.1. All other sources: six
settings of learning rate and β, all checkpoints pooled. Divergence and win rate are exact sums.
"""

from anypolicy.evidence.checks import Check
from anypolicy.loops.laboratory import laboratory, study
from anypolicy.methods.exact.online_offline import best_in, correlation, peak

CLAIM = "online preference learning wins more than offline at equal divergence and at its peak (arXiv 2405.08448)"
SEEDS = 5
CURVE = "largest win rate within a divergence of so many nats"
ARMS = ("online", "offline", "stream, shuffled", "stream, windows of 4", "stream, windows of 500", "final vs final",
        "start vs final", "best-of-two")  # fmt: skip
CURVE_ARMS = ("online", "offline", "stream, shuffled", "final vs final")


def run(arm: str, seed: int) -> dict:
    other = arm == "best-of-two"
    name = {"online": "stream, windows of 1", "best-of-two": "offline"}.get(arm, arm)
    lab = laboratory(seed)
    found = study(lab, loss="best-of-two", lr=0.3, sources=[name]) if other else study(lab, sources=[name])
    own = found.points["online" if arm in ("online", "best-of-two") else arm]
    top = peak(own)
    out = {"win": top.win, "kl": top.kl, "accuracy": top.accuracy, "better": top.better}
    if other:
        return out | {"offline": peak(found.points["offline"]).win}
    if arm == "online":
        out["moved"] = found.moved[name]
    curve = [(k, max((p.win for p in own if p.kl <= k), default=own[0].win)) for k in range(1, 6)]
    return out | {"between": best_in(own, 1.0, 2.0) or 0.0, "correlation": correlation(own), "curve": curve}


CHECKS = [
    Check("peak win rate, online − offline", "> 0.15", lambda r: r["online"]["win"] - r["offline"]["win"], above=0.15),
    Check("best at divergence 1 to 2, online − offline", "> 0.03",
          lambda r: r["online"]["between"] - r["offline"]["between"], above=0.03),
    Check("accuracy on the offline pairs at the peak, offline − online", "> 0",
          lambda r: r["offline"]["accuracy"] - r["online"]["accuracy"], above=0.0),
    Check("replaying the stream ends elsewhere by", "< 1e-12", lambda r: r["online"]["moved"], below=1e-12),
    Check("best-of-two has the gap too, online − offline", "> 0",
          lambda r: r["best-of-two"]["win"] - r["best-of-two"]["offline"], above=0.0, core=False),
    Check("whole shuffling costs more than windows of 4", "> 0",
          lambda r: r["stream, windows of 4"]["win"] - r["stream, shuffled"]["win"], above=0.0, core=False),
    Check("coverage does not explain it: shuffled stream is no better than offline + 0.05", "< 0.05",
          lambda r: r["stream, shuffled"]["win"] - r["offline"]["win"], below=0.05, core=False),
    Check("quality does not explain it: final vs final is no better than offline + 0.05", "< 0.05",
          lambda r: r["final vs final"]["win"] - r["offline"]["win"], below=0.05, core=False),
    Check("log-ratio of better answers at the peak, online − offline", "> 0 (paper)",
          lambda r: r["online"]["better"] - r["offline"]["better"], above=0.0, core=False),
    Check("offline: correlation of accuracy and win rate", "< 0.3 (paper: none)",
          lambda r: r["offline"]["correlation"], below=0.3, core=False),
]  # fmt: skip
