"""HF-UCRL-RFE++: reward-free exploration of a linear mixture whose cost does not grow with the horizon.

Paper: arXiv 2303.10165, algorithm 4 (exploration) and its high-order moment estimator (HOME).
Idea: explore where values are least certain, under whichever reward makes that worst; weigh every observation by an
estimate of its variance, itself learnt from powers V^(2^m) of the values.
Changes: nothing of a policy's training: it gives a model of the dynamics, to plan with for any later reward.
Silent: the joint maximum over policies, θ and rewards is an oracle. Here rewards come from a bank (one for being in
each state at the end, the user's own, random ones), θ is the pooled estimate or that of either family at m = 0, its
weights projected on the simplex, and actions are the greedy ones of V̂: the certificate is an estimate. Values are kept
in [0, 1] whatever θ is. β = 0.3 explores and β = 1 certifies; the proof's β (`beta_theory`) makes every bonus 1.
Four moments by default: values below 0.9 to the 16th power vanish; the theory's count is "theory".
Differs: the bonus u prints V_h where Bellman's equation has V_{h+1}, as here. There is no authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from anypolicy import knobs
from anypolicy.catalogue import Card, method
from anypolicy.errors import InputError
from anypolicy.knobs import Knob
from anypolicy.parts import mdp
from anypolicy.parts.mixture import LinearMixtureModel, norm
from anypolicy.parts.reports import Solution
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.exact.reward_free import Environment, Result, Start, episode, problem, solution

Array = NDArray[Any]
Policy = NDArray[np.int64]
Mode = Literal["hf", "unweighted", "random"]


@dataclass(frozen=True)
class HFConfig:
    """β of exploration, number of moments M, α (H^−½), γ (d^−¼), λ (d/B²); "unweighted" has σ² = 1, "random" acts at
    random."""

    beta: float = 0.3
    M: int | Literal["theory"] = 4
    alpha: float | None = None
    gamma: float | None = None
    lam: float | None = None
    mode: Mode = "hf"


def scales(
    d: int, H: int, B: float, alpha: float | None, gamma: float | None, lam: float | None
) -> tuple[float, float, float]:
    """α, γ, λ: what was given, else H^−½, d^−¼ and d/B²."""
    given = [own if x is None else x for x, own in ((alpha, H**-0.5), (gamma, d**-0.25), (lam, d / B**2))]
    if min(given) <= 0:
        raise InputError("alpha, gamma, lam", given, "use numbers above 0")
    return given[0], given[1], given[2]


def home(
    phi_m: Array, theta_m: Array, Sigma_m: Array, Sigma0_inv_m: Array, beta: float, alpha: float, gamma: float
) -> Array:
    """HOME: σ²_m of every moment, of arrays [..., M, d] and [..., M, d, d]. Σ is the running matrix, Σ̇ (given as
    its inverse) that of the episode's start."""
    predicted = np.clip((phi_m * theta_m).sum(-1), 0.0, 1.0)
    width = beta * norm(phi_m, Sigma0_inv_m)
    running = np.linalg.solve(Sigma_m, phi_m[..., None])[..., 0]
    epistemic = gamma**2 * np.sqrt(np.maximum((running * phi_m).sum(-1), 0.0))
    variance = np.ones_like(predicted)
    variance[..., :-1] = predicted[..., 1:] - predicted[..., :-1] ** 2 + np.minimum(1, 2 * width[..., :-1]) \
        + np.minimum(1, width[..., 1:])  # fmt: skip
    return np.maximum(np.maximum(epistemic, variance), alpha**2)


def pseudo_values(
    model: LinearMixtureModel, thetas: Array, rewards: Array, tilde_inv: Array, hat_inv: Array, beta: float
) -> tuple[Policy, Array, Array]:
    """For every reward [R, H, S, A] and θ [T, d]: the policy that is greedy in V̂ (ties by r + φ_Vᵀθ), its V and V̂."""
    R, H, S = rewards.shape[:3]
    V, hat = np.zeros((2, R, len(thetas), H + 2, S))
    policy = np.zeros((R, len(thetas), H, S), dtype=np.int64)
    column = thetas[:, None, None, :, None]
    for h in range(H, 0, -1):
        phi, phi_hat = model.phi_v(V[:, :, h + 1]), model.phi_v(hat[:, :, h + 1])
        value = np.clip(rewards[:, None, h - 1] + (phi[..., None, :] @ column)[..., 0, 0], 0.0, 1.0)
        bonus = np.minimum(1.0, beta * norm(phi, tilde_inv)) + 2 * beta * norm(phi_hat, hat_inv)
        optimistic = np.clip(bonus + (phi_hat[..., None, :] @ column)[..., 0, 0], 0.0, 1.0)
        tied = optimistic >= optimistic.max(-1, keepdims=True) - 1e-12
        policy[:, :, h - 1] = a = np.where(tied, value, -1.0).argmax(-1)
        V[:, :, h] = np.take_along_axis(value, a[..., None], -1)[..., 0]
        hat[:, :, h] = np.take_along_axis(optimistic, a[..., None], -1)[..., 0]
    return policy, V, hat


def pseudo_value(
    model: LinearMixtureModel, theta: Array, reward: Array, Sig_t0_inv: Array, Sig_h0_inv: Array, beta: float
) -> tuple[Policy, Array, Array]:
    """(π [H, S], V [H + 2, S], V̂ [H + 2, S]) of one θ and one reward."""
    policy, V, hat = pseudo_values(model, theta[None], reward[None], Sig_t0_inv, Sig_h0_inv, beta)
    return policy[0, 0], V[0, 0], hat[0, 0]


def oracle(result: Result, beta: float) -> tuple[Policy, Array, Array]:
    """(π, V, V̂) of the pair of reward and θ whose V̂_1(s1) is largest."""
    hat_inv, tilde_inv = np.linalg.inv(result.Sigma[:, 0])
    policy, V, hat = pseudo_values(result.model, result.candidates, result.rewards, tilde_inv, hat_inv, beta)
    first = hat[:, :, 1, result.start]
    best = np.unravel_index(int(first.argmax()), first.shape)
    return policy[best], V[best], hat[best]


def explore(
    env: Environment, model: LinearMixtureModel, K: int, H: int, rewards: Array | None = None,
    cfg: HFConfig = HFConfig(), *, seed: int = 0, quiet: bool = True,
) -> Result:  # fmt: skip
    """K episodes of H steps without reward (algorithm 4). `rewards` [n, H, S, A] is the bank; by default a reward for
    being in each state at the end."""
    rng, start = numpy_generator(seed, "explore"), Start(model, H, rewards, K, cfg.beta)
    M = math.ceil(math.log2(7 * max(K, 1) * H)) if cfg.M == "theory" else cfg.M
    if M < 1:
        raise InputError("moments", M, "use 1 or more")
    alpha, gamma, lam = scales(model.d, H, model.theta_bound, cfg.alpha, cfg.gamma, cfg.lam)
    Sigma = np.zeros((2, M, model.d, model.d)) + lam * np.eye(model.d)
    first = int(env.reset(seed=seed)[0])
    start.check(first)
    result = Result(model, start.rewards, first, Sigma, np.zeros((2, M, model.d)), np.zeros((K, model.d)), np.zeros(K))
    with counting(min(K, 20), "explore", quiet=quiet) as tick:
        for k in range(K):
            policy, V, hat = oracle(result, cfg.beta)
            result.pseudo[k] = hat[1, first]
            if cfg.mode == "random":
                policy = rng.integers(0, model.actions, policy.shape)
            states, actions = episode(env, policy, first)
            regress(result, cfg, (alpha, gamma), np.stack([hat, V])[:, 2 : len(actions) + 2], states, actions)
            result.thetas[k] = result.theta
            if (k + 1) * 20 // K > k * 20 // K:
                tick(f"V̂_1(s1) {result.pseudo[k]:.3f}")
    return result


def regress(
    result: Result, cfg: HFConfig, scales: tuple[float, float], after: Array, states: list[int], actions: list[int]
) -> None:
    """Weighted ridge regressions of both families and all moments on an episode; `after` [2, n, S] is V_{h+1}."""
    theta, frozen = np.linalg.solve(result.Sigma, result.b[..., None])[..., 0], np.linalg.inv(result.Sigma)
    powers = after[:, :, None, :] ** (2.0 ** np.arange(result.b.shape[1]))[:, None]
    visited = result.model.phi[:, states[:-1], actions, :]
    phi = np.einsum("dnt,fnmt->nfmd", visited, powers)
    seen = np.take_along_axis(powers, np.array(states[1:])[None, :, None, None], -1)[..., 0].transpose(1, 0, 2)
    for x, y in zip(phi, seen, strict=True):
        s2 = np.ones(y.shape) if cfg.mode == "unweighted" else home(x, theta, result.Sigma, frozen, cfg.beta, *scales)
        result.Sigma += x[..., :, None] * x[..., None, :] / s2[..., None, None]
        result.b += x * (y / s2)[..., None]


def plan(model: LinearMixtureModel, theta: Array, reward: Array) -> tuple[Policy, Array]:
    """Phase II: the best policy of the learnt dynamics for any reward [..., H, S, A], and its values."""
    return mdp.plan(model.kernel(theta), reward)


def certificate(result: Result, beta: float = 1.0) -> float:
    """V̂_1(s1) of the oracle with what is known at the end: how wrong planning for a reward of the bank may be."""
    return float(oracle(result, beta)[2][1, result.start])


def beta_theory(
    k: int, d: int, H: int, delta: float, B: float, alpha: float | None = None, gamma: float | None = None,
    lam: float | None = None,
) -> float:  # fmt: skip
    """The proof's radius β_k = 12 √(dητ) + 30 τ/γ² + √λ B, of the defaults α = H^−½, γ = d^−¼, λ = d/B²."""
    alpha, gamma, lam = scales(d, H, B, alpha, gamma, lam)
    eta = math.log(1 + k * H / (alpha**2 * d * lam))
    tau = math.log(32 * (max(math.log(gamma**2 / alpha), 0.0) + 1) * k**2 * H**2 / delta)
    return 12 * math.sqrt(d * eta * tau) + 30 * tau / gamma**2 + math.sqrt(lam) * B


@method(
    Card(
        title="Optimal Horizon-Free Reward-Free Exploration for Linear Mixture MDPs",
        paper="arXiv 2303.10165",
        year=2023,
        family="exact",
        idea="explore a mixture of simulators without reward, then plan for any; the horizon does not raise the cost",
        changes=(),
        composes_with="any planner over the learnt dynamics",
        claim="its certificate is as small at horizon 32 as at 8, where unweighted regression's grows",
        example="anypolicy solve horizon-free-rfe",
        look_at="what it finds, printed and drawn in its report",
    ),
)
def horizon_free_rfe(
    instance: Annotated[Literal["corridor", "random", "hard"] | None, Knob("a problem that is made here")] = None,
    features: Annotated[int | None, Knob("size of the features; none: the instance's own", least=1)] = None,
    states: Annotated[int | None, Knob("states; none: the instance's own", least=1)] = None,
    actions: Annotated[int | None, Knob("actions; none: the instance's own", least=1)] = None,
    horizon: Annotated[int, Knob("steps of an episode", least=1)] = 8,
    episodes: Annotated[int, Knob("episodes of exploration", least=1)] = 200,
    beta: knobs.Beta = 0.3,
    certify: Annotated[float, Knob("accuracy ε that is certified", above=0)] = 1.0,
    moments: Annotated[int, Knob("moments of values that are learnt", least=1)] = 4,
    mode: Annotated[Mode, Knob("bonus: free of the horizon, or Hoeffding's")] = "hf",
    random_rewards: Annotated[int, Knob("random rewards that are planned for", least=0)] = 20,
    data: Annotated[str, Knob("name of the problem, or a file")] = "",
    env: Annotated[str, Knob("environment of Gymnasium with a table of transitions; empty: the instance")] = "",
    seed: knobs.Seed = 0,
) -> Solution:
    """`data` is a .npz file with `kernels` [d, S, A, S] and `weights` [d] of the real dynamics (or their `env`, a
    Gymnasium id), and may hold `rewards` [n, H, S, A] and `start`. Without it an instance is made
    (corridor) of 3 `features`, that is kernels; the corridor is 6 `states` long, the random one has 6 `states` and 3
    `actions`."""
    sizes = {"features": features, "states": states, "actions": actions}
    given = problem(instance, sizes, horizon, random_rewards, data, env, seed)
    found = explore(given.env, given.model, episodes, horizon, given.rewards, HFConfig(beta, moments, mode=mode),
                    seed=seed, quiet=False)  # fmt: skip
    policies, _ = plan(given.model, found.theta, found.rewards)
    proof = beta_theory(max(episodes, 1), given.model.d, horizon, 0.05, given.model.theta_bound)
    return solution(given, found, policies, (certify, certificate(found, certify)), (proof, certificate(found, proof)))
