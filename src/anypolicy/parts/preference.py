"""Losses of preference pairs: [pairs] in, [pairs] out, in nats, to be minimised. They take the mean over pairs nowhere.

ℓ(y) is the log-probability of a whole response: the *sum* over its tokens, its end token included. The log-ratio to
the reference is u(y) = ℓ(y) − ℓ_ref(y), the margin of a pair h = u(chosen) − u(rejected). Where a loss wants the *mean*
over tokens instead, its name or its arguments say so.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from anypolicy.errors import InputError

Pairs = Float[Tensor, " pairs"]


def sequence_sum(logp: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]) -> Float[Tensor, " rows"]:
    """ℓ = Σ_t logp over the masked tokens. A log-probability there that is not finite is an error: such a token has no
    probability, and no number in its place would be true."""
    kept = torch.where(mask, logp, 0)
    if not bool(kept.detach().isfinite().all()):
        row, token = (int(i) for i in (~kept.detach().isfinite()).nonzero()[0])
        raise InputError("log-probability", float(kept[row, token]), f"row {row}, token {token}: it must be finite")
    return kept.sum(1)


def margin(chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs) -> Pairs:
    """h = (ℓ_w − ℓ_ref,w) − (ℓ_l − ℓ_ref,l), of sums."""
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def mean_margin(ratio_chosen: Pairs, ratio_rejected: Pairs, length_chosen: Pairs, length_rejected: Pairs) -> Pairs:
    """u_w/|y_w| − u_l/|y_l|: the margin of means over tokens. |y| counts at least 1."""
    return ratio_chosen / length_chosen.clamp(min=1) - ratio_rejected / length_rejected.clamp(min=1)


def sigmoid(h: Pairs, beta: float, smoothing: float = 0.0) -> Pairs:
    """−(1 − ε) log σ(βh) − ε log σ(−βh): DPO (arXiv 2305.18290, eq. 7) for ε = 0; with label smoothing ε the
    conservative DPO, whose optimum is finite: h* = log((1 − ε)/ε)/β. Of a mean margin: the length-normalised form."""
    loss = -(1 - smoothing) * logsigmoid(beta * h)
    return loss - smoothing * logsigmoid(-beta * h) if smoothing else loss


def robust_sigmoid(h: Pairs, beta: float, smoothing: float) -> Pairs:
    """[−(1 − ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε), ε < 1/2: its mean over labels that are flipped with probability ε
    is DPO on the true ones (arXiv 2403.00409, eq. 11). It can be negative."""
    return (-(1 - smoothing) * logsigmoid(beta * h) + smoothing * logsigmoid(-beta * h)) / (1 - 2 * smoothing)


def soft_sigmoid(h: Pairs, beta: float, probability: Pairs) -> Pairs:
    """−p log σ(βh) − (1 − p) log σ(−βh), p the probability that the chosen response is better: h* = logit(p)/β."""
    return -probability * logsigmoid(beta * h) - (1 - probability) * logsigmoid(-beta * h)


def hinge(h: Pairs, gamma: float) -> Pairs:
    """max(0, 1 − γh): hinge-norm of a margin to the reference, SLiC's of ℓ_w − ℓ_l alone (arXiv 2309.06657, eq. 9, 10).
    Its gradient is 0 from h = 1/γ on, that point included."""
    return torch.relu(1 - gamma * h)


def slic(chosen: Pairs, rejected: Pairs, target: Pairs, delta: float, coef: float) -> Pairs:
    """max(0, δ − ℓ_w + ℓ_l) − λ ℓ(target) without a reference, of sums (SLiC-HF, arXiv 2305.10425, eq. 1)."""
    return torch.relu(delta - chosen + rejected) - coef * target


def squared(h: Pairs, beta: float) -> Pairs:
    """(h − 1/(2β))²: IPO (arXiv 2310.12036, eq. 17), whose τ is β here. Its authors' own form takes a *mean* margin."""
    return (h - 1 / (2 * beta)).square()


def scaled_squared(h: Pairs, beta: float) -> Pairs:
    """(βh − 1/2)² = β² · `squared`: IPO in the scaling of arXiv 2405.08448, with the same minimiser h* = 1/(2β)."""
    return (beta * h - 0.5).square()


def best_of_two(chosen: Pairs, length_chosen: Pairs) -> Pairs:
    """−ℓ_w/|y_w|, the *mean* over tokens: imitate the better response, forget the other (arXiv 2405.08448)."""
    return -chosen / length_chosen.clamp(min=1)


# --- responses with a label of their own -----------------------------------------------------------------------------
def kto_baseline(mismatched: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """ρ = max(0, mean of u(y' | x)) over responses y' that were not given to x; no gradient (arXiv 2402.01306, eq. 8).
    At least one, which takes two prompts."""
    if not len(mismatched):
        raise InputError(
            "prompts", 1, "the baseline takes responses to other prompts: use at least 2 prompts in a step"
        )
    return mismatched.detach().mean().clamp(min=0)


def kto(
    ratio: Float[Tensor, " n"], baseline: Float[Tensor, ""] | float, desirable: Bool[Tensor, " n"], beta: float,
    weight_desirable: float = 1.0, weight_undesirable: float = 1.0,
) -> Float[Tensor, " n"]:  # fmt: skip
    """λ_D (1 − σ(β(u − ρ))) of a desirable response, λ_U (1 − σ(β(ρ − u))) of another; u of sums (arXiv 2402.01306)."""
    x = beta * (ratio - baseline)
    return torch.where(desirable, weight_desirable * torch.sigmoid(-x), weight_undesirable * torch.sigmoid(x))


# --- denoisers -------------------------------------------------------------------------------------------------------
def diffusion_margin(chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs, beta: float) -> Pairs:
    """−β/2 [(m_w − m_l) − (m_ref,w − m_ref,l)], the inside of Diffusion-DPO's −log σ(·) (arXiv 2311.12908, eq. 14).

    m is the *mean* over all dimensions of (target − prediction)², of both responses at one time with one noise. As a
    mean it shrinks with the dimension D, so β has to grow with it: 5000 for images, 2 to 20 for D = 2.
    """
    return -0.5 * beta * ((chosen - rejected) - (ref_chosen - ref_rejected))


def diffusion(chosen: Pairs, rejected: Pairs, ref_chosen: Pairs, ref_rejected: Pairs, beta: float) -> Pairs:
    """−log σ(`diffusion_margin`)."""
    return -logsigmoid(diffusion_margin(chosen, rejected, ref_chosen, ref_rejected, beta))


# --- what is logged --------------------------------------------------------------------------------------------------
@torch.no_grad()
def pair_metrics(ratio_chosen: Pairs, ratio_rejected: Pairs) -> dict[str, Pairs]:
    """Of every pair: accuracy 1[h > 0] (a tie ½), margin h, both log-ratios, and their mean, which estimates the
    divergence to the reference if the policy wrote both."""
    h = ratio_chosen - ratio_rejected
    accuracy = (h > 0).to(h.dtype) + 0.5 * (h == 0).to(h.dtype)
    return {
        "pairs/accuracy": accuracy, "pairs/margin": h, "pairs/chosen": ratio_chosen, "pairs/rejected": ratio_rejected,
        "kl/proxy": (ratio_chosen + ratio_rejected) / 2,
    }  # fmt: skip
