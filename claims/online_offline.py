"""The online–offline study's claim: with the same loss, pairs of the live policy beat the pairs it began with.

Log-linear policies over 300 answers to 200 prompts, misspecified for a quadratic score; 600 offline pairs; a proxy
fitted to them labels the online pairs. Online: 3000 steps of 32 pairs, learning rate 1, β = 0.1. All other sources: six
settings of learning rate and β, all checkpoints pooled. Divergence and win rate are exact sums. At equal divergence: the
best checkpoints at 1 to 2 nats; a source that never gets to 1 nat is compared by its best below 2.
"""

from anypolicy.evidence.checks import Amendment, Check, Results
from anypolicy.loops.preference_study import laboratory, study
from anypolicy.methods.exact.online_offline import best_in, correlation, peak

CLAIM = (
    "online preference learning wins 0.15 more than offline at its peak and 0.03 at a divergence of 1 to 2 nats, though it is the "
    "worse classifier of the offline pairs; replaying its stream ends at the same weights (arXiv 2405.08448)"
)
SEEDS = 10
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
    return out | {"between": best_in(own, 1.0, 2.0), "correlation": correlation(own), "curve": curve}


def between(r: Results, source: str) -> float:
    """The best win rate at a divergence of 1 to 2 nats; of a source that never gets there, the best below 2."""
    return r[source]["between"] or dict(r[source]["curve"])[2]


CHECKS = [
    Check("peak win rate, online − offline", "> 0.15", lambda r: r["online"]["win"] - r["offline"]["win"], above=0.15,
          kind="share"),
    Check("best at divergence 1 to 2, online − offline", "> 0.03",
          lambda r: between(r, "online") - between(r, "offline"), above=0.03, refuted=0.0, kind="share"),
    Check("accuracy on the offline pairs at the peak, offline − online", "> 0",
          lambda r: r["offline"]["accuracy"] - r["online"]["accuracy"], above=0.0, kind="share"),
    Check("replaying the stream ends elsewhere by", "< 1e-12", lambda r: r["online"]["moved"], below=1e-12, kind="each"),
    Check("best-of-two has the gap too, online − offline", "> 0",
          lambda r: r["best-of-two"]["win"] - r["best-of-two"]["offline"], above=0.0, kind="share", core=False),
    Check("whole shuffling costs more than windows of 4", "> 0",
          lambda r: r["stream, windows of 4"]["win"] - r["stream, shuffled"]["win"], above=0.0, kind="share", core=False),
    Check("coverage does not explain it: shuffled stream is no better than offline + 0.05", "< 0.05",
          lambda r: r["stream, shuffled"]["win"] - r["offline"]["win"], below=0.05, refuted=0.05, kind="share", core=False),
    Check("quality does not explain it: final vs final is no better than offline + 0.05", "< 0.05",
          lambda r: r["final vs final"]["win"] - r["offline"]["win"], below=0.05, refuted=0.05, kind="share", core=False),
    Check("log-ratio of better answers at the peak, online − offline", "> 0 (paper)",
          lambda r: r["online"]["better"] - r["offline"]["better"], above=0.0, core=False),
    Check("offline: correlation of accuracy and win rate", "< 0.3 (paper: none)",
          lambda r: r["offline"]["correlation"], below=0.3, core=False),
]  # fmt: skip
NOTE = (
    "{0:.2f} ahead at the peak and {1:.2f} at 1 to 2 nats; the shuffled stream less offline is {6:.2f}, the final policy's pairs less "
    "offline {7:.2f}, where the paper finds no gain"
)
AMENDMENTS = (
    Amendment("every arm runs its own source alone; the curve is the best win rate within a divergence", "2026-11-26", "before a look",
              "arms had run all sources at once"),
    Amendment("every check has a kind; that the replay ends at the same weights, on every seed", "2026-12-01", "after a look",
              "verdicts follow from the kind of an outcome"),
    Amendment("offline as good as online at 1 to 2 nats refutes", "2026-12-01", "after a look",
              "the claim's rule for a refutation had not been written on its checks"),
    Amendment("the reported checks of coverage and quality are refuted at their bound", "2026-12-01", "after a look",
              "they state that there is no gain"),
    Amendment("a source that never gets to 1 nat is compared by its best below 2 nats (seed 6)", "2026-12-01", "after a look",
              "an empty bin was recorded as a win rate of 0, which would have counted as a loss"),
    Amendment("the sentence names the sizes, the classifier and the replay", "2026-12-01", "after a look",
              "every core check is a statement of the sentence, and every statement a core check"),
    Amendment("ten seeds instead of five", "2026-12-01", "after a look", "shares of success need ten"),
)  # fmt: skip
