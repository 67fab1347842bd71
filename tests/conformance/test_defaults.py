"""The default of every setting: the paper's value (PAPER, with its section or table), or one of ours and why (OURS).

A paper that says nothing of a setting, or of which only a part could be read, is silent; what its code or another
implementation has is said beside the value. `optimiser` are fields of the recipe's optimiser.
"""

import math

import pytest

from anypolicy import catalogue

METHODS = catalogue.methods(None)


def of(**settings):
    return settings


WIDE = (256, 256, 256)

PAPER = {
    # --- responses to prompts ------------------------------------------------------------------------------------
    # arXiv 2505.13417, section 4 (K, the halves); the rest, the ratio and 4096 of 16384 tokens from its code's script
    "adaptthink": of(group_size=16, bonus=0.05, share=0.5, reference_samples=16, ratio="seq_mean", clip_low=0.2,
                       clip_high=0.2, direct_limit=0.25, optimiser=of(lr=2e-6, weight_decay=0.01, minibatches=1)),
    # arXiv 2506.21655, code: train_grpo.sh and the defaults of its trainer
    "apo": of(group_size=8, clip=0.2, kl_coef=1e-3, dads=True, dads_coef=math.e, stcr=True, stcr_base=1.00001,
                optimiser=of(lr=1e-6, betas=(0.9, 0.95), epochs=1)),
    # arXiv 2510.11683, experiments (G, masks, rate, one update a batch), eq. 19 (no cap)
    "bgpo": of(group_size=8, samples=16, d_max=None, optimiser=of(lr=5e-7, minibatches=1)),
    # the same paper, baselines: four masks on mathematics
    "vrpo-ol": of(group_size=8, samples=4, optimiser=of(lr=5e-7)),
    # arXiv 2504.12216, section 3 (prompt masks); arXiv 2510.11683, experiments (G and rate of the comparison)
    "diffu-grpo": of(group_size=8, prompt_mask=0.15, optimiser=of(lr=5e-7)),
    # arXiv 2506.13585, section 3.1: the lower side is not bounded
    "cispo": of(clip_low=1.0),
    # arXiv 2510.15979: base DAPO (arXiv 2503.14476, section 4.1)
    "cog-rethinker": of(group_size=16, decompose=True, reflect=True, clip_low=0.2, clip_high=0.28,
                          optimiser=of(lr=1e-6)),
    # arXiv 2406.19185, section 6: best β of the sweep, rate, two epochs
    "copg": of(beta=0.06, optimiser=of(lr=1e-6, epochs=2)),
    # arXiv 2509.22115: cross-group form
    "d3s": of(scope="batch"),
    # arXiv 2503.14476, section 4.1; 4096 of 20480 tokens
    "dapo": of(group_size=16, clip_low=0.2, clip_high=0.28, overlong_fraction=0.2,
                 optimiser=of(lr=1e-6, warmup=20)),
    "dr-grpo": of(group_size=8),  # arXiv 2503.20783, code of section 3
    # arXiv 2507.02834, ablation of β; one explanation a prompt, used on every prompt
    "expo-self-explanation": of(beta=0.04, explanations=1, when="always", only_correct=False),
    # arXiv 2508.07750, experiments
    "grao": of(group_size=8, beta=0.5, lam=0.6, reuse_ratio=False,
                 optimiser=of(lr=1e-6, weight_decay=0.01)),
    # arXiv 2402.03300, section 4.2: rate, one update a batch
    "grpo": of(optimiser=of(lr=1e-6, epochs=1, minibatches=1)),
    # arXiv 2507.18071, section 5.1
    "gspo": of(clip_low=3e-4, clip_high=4e-4, optimiser=of(minibatches=4)),
    # arXiv 2509.18851, eq. 5–7 and section 4; entropy bonus and mini-batches from its code
    "ngrpo": of(group_size=8, virtual_reward=1.0, virtual_count=1, clip_low=0.16, clip_high=0.24, entropy_coef=1e-3,
                  std="sample", optimiser=of(lr=1e-6, minibatches=4)),
    # arXiv 2409.06957, section 4 and table 4 (two of five), section 5.3 (normalisation); rates and KL from its code
    "pf-ppo": of(group_size=5, n_keep=2, kl_coef=0.01, value_clip=0.2, normalise_reward=True, std="population",
                   power=2.0, optimiser=of(lr=5e-7, epochs=1)),
    # arXiv 2203.02155, appendix C.4 (clip, no discount); arXiv 2409.06957, code (both rates)
    "ppo": of(clip=0.2, discount=1.0, value_lr=9e-6, optimiser=of(lr=5e-7)),
    # arXiv 2501.03262, section 3: returns without discount
    "reinforce-pp": of(group_size=1, discount=1.0),
    # arXiv 2402.14740, appendix C
    "rloo": of(group_size=4, kl_coef=0.03, optimiser=of(lr=1e-6)),
    # arXiv 2511.20347, section 5.1
    "sapo": of(tau_pos=1.0, tau_neg=1.05, optimiser=of(minibatches=4)),
    # arXiv 2511.18902, figure 2
    "vade": of(group_size=8, fast=0.2, slow=0.999, gain="p(1-p)^2", greedy=False),
    # --- pairs -----------------------------------------------------------------------------------------------------
    # arXiv 2305.18290, appendix B
    "dpo": of(beta=0.1, smoothing=0.0, form="sigmoid", nll_coef=0.0, optimiser=of(lr=1e-6)),
    # arXiv 2510.02341, code: settings of both iterations
    "drift": of(beta=0.1, nll_coef=1e-3, guided=True, samples=1, smoothing=0.0, reference="round",
                  optimiser=of(lr=5e-7, epochs=1)),
    "ipo": of(form="mean"),  # what the authors of arXiv 2310.12036 have said since
    "iterative-dpo": of(beta=0.1, optimiser=of(epochs=1)),  # arXiv 2401.10020, section 3.1
    # arXiv 2402.01306, section 4
    "kto": of(beta=0.1, weight_desirable=1.0, weight_undesirable=1.0),
    # arXiv 2405.00451, code: mcts_mathqa.sh and the flags' defaults
    "mcts-dpo": of(beta=0.1, candidates=2, root_candidates=2, iterations=64, depth=3, finish=True, step_tokens=128,
                     self_evaluation=True, known_steps=True, multiple_choice=False, worse="lowest", solved=True,
                     online=True, explore=1.0, length_penalty=1.25,
                     optimiser=of(lr=1e-6, weight_decay=0.05)),
    # arXiv 2402.04792, algorithm 1 (two responses), experiments (β, rate)
    "online-dpo": of(beta=0.1, samples=2, optimiser=of(lr=5e-7, epochs=1)),
    # arXiv 2501.09695, code: train_opa_dpo.sh; what its figure says of the anchor
    "opa-dpo": of(beta=0.1, reference_coef=1.0, revision_coef=1.0, image_coef=0.2, anchor_coef=1.0, delta=0.0,
                    mask_ratio=0.3, weighted=True, anchor_code_sign=False,
                    optimiser=of(lr=1e-6, warmup=5, grad_clip=1.0)),
    "orpo": of(lam=0.1),  # arXiv 2403.07691, section 5.1
    # arXiv 2309.06657, experiments and the sweeps of β and γ
    "rso": of(beta=0.5, gamma=0.05, loss="sigmoid-norm", source="rso", samples=64, accepted=8, pairing="first_round",
                optimiser=of(lr=1e-5)),
    "simpo": of(beta=2.0, gamma=1.0),  # arXiv 2405.14734, appendix B: Llama-3-Base
    "slic": {},
    # arXiv 2401.01335, code: settings of the first iteration
    "spin": of(beta=0.1, previous=True, optimiser=of(lr=5e-7)),
    # --- references, pairs of a reward model -----------------------------------------------------------------------
    # arXiv 2203.02155, appendix C.2; the margin is Llama 2's, the centre that of arXiv 2312.09244
    "bradley-terry": of(pairs=64, margin=False, centre_coef=0.0, optimiser=of(lr=9e-6, epochs=1)),
    "mdlm": of(optimiser=of(lr=3e-4)),  # arXiv 2406.07524, appendix: rate on text
    # arXiv 2509.26313, experiments (K, κ), 1/T in the objective
    "otr": of(samples=256, kappa=1.3, exact=False, aggregation="seq-mean-token-mean"),
    "sft": {},
    # --- control ---------------------------------------------------------------------------------------------------
    "bc": of(denoising_steps=10),  # code of EXPO (arXiv 2507.07986) and of QC
    # arXiv 2111.04714, appendix and code: network, rate, discount of CartPole, batch, copies; each method's own from
    # the same code
    "bcq": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128, copy_every=100, threshold=0.3, logits=0.01),
    "bve": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128),
    "cql": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128, copy_every=100, alpha=0.1),
    "crr": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128, copy_every=100, weights="binary", baseline="mean",
                beta=1.0, samples=4),
    "dqn": of(hidden=WIDE, lr=1e-4, discount=0.95, copy_every=100, batch=32, offline_batch=128, updates=1, warmup=32,
                capacity=50_000, epsilon=0.01, epsilon_updates=1000),
    "mce": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128),
    "qr-dqn": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128, copy_every=100, quantiles=50),
    "rem": of(hidden=WIDE, lr=1e-4, discount=0.95, batch=128, copy_every=100, heads=200),
    # arXiv 2506.15799, code: settings of Hopper, and what all share
    "dsrl": of(magnitude=1.5, hidden=(128, 128, 128), lr=3e-4, discount=0.99, tau=0.005, batch=256, updates=20,
                 distillations=10, ensemble=2, reduction="min", target_entropy=0.0, alpha=1.0, learn_alpha=True,
                 backup_entropy=True, deterministic_eval=False),
    "dsrl-sac": of(magnitude=1.5, hidden=(128, 128, 128), lr=3e-4, discount=0.99, tau=0.005, batch=256, updates=20,
                     target_entropy=0.0, alpha=1.0, learn_alpha=True, deterministic_eval=False),
    # arXiv 2507.07986, code: the scripts, and the defaults of its settings
    "expo-expressive": of(samples=8, edits=8, beta=0.05, hidden=WIDE, lr=3e-4, discount=0.99, tau=0.005, batch=256,
                            updates=20, ensemble=10, subset=2, offline_share=0.5, alpha=1.0, average=0.001,
                            capacity=1_000_000, denoising_steps=10, base_lr=3e-4),
    # arXiv 2302.01734, theorems (one trajectory) and code (γ₀, η₀, discount, baseline linear in features)
    "harpg": of(gamma0=0.1, eta0=1.0, batch=1, discount=0.99, normalised=True, hvp="unbiased", baseline="linear"),
    "npg-igt": of(gamma0=0.1, eta0=1.0, batch=1, discount=0.99, direction="igt", normalised=True, baseline="linear"),
    # arXiv 2311.08384, code: main.py, trpo.py and models.py
    "hnpg": of(offline=True, weight=1.0, lam=0.97, max_kl=0.01, damping=0.1, hidden=(16, 16), critic_hidden=(64, 64),
                 critic_lr=3e-4, critic_steps=30, value_samples=10),
    "lipschitz-bc": {},
    # CleanRL's script for continuous actions; arXiv 1707.06347, table 3, has the same clip, λ, discount, rate, epochs
    "ppo-control": of(hidden=(64, 64), lr=3e-4, anneal=True, discount=0.99, lam=0.95, horizon=2048, environments=1,
                        minibatches=32, epochs=10, clip=0.2, clip_value=True, value_weight=0.5, entropy_weight=0.0,
                        grad_clip=0.5, target_kl=None, normalise_advantage=True, normalise_observation=True,
                        normalise_reward=True),
    # arXiv 2311.08290, code: arguments of ppo_props_continuous.py; table of tuned ranges
    "props": of(hidden=(64, 64), horizon=2048, buffer=2, collect=1024, environments=1, clip=0.2, entropy_weight=0.01,
                  target_kl=0.03, lr=1e-3, discount=0.99, lam=0.95, minibatches=32, epochs=10, behaviour_lr=1e-4,
                  behaviour_epochs=16, behaviour_minibatches=16, behaviour_clip=0.3, kl_weight=0.3, kl_bound=0.05,
                  weigh_advantage=False, normalise_observation=True, normalise_reward=True),
    # arXiv 2509.19301, code: residual_td3.py and rlpd.py of its settings
    "resfit": of(ensemble=10, subset=2, discount=0.99, tau=0.005, batch=256, updates=4, actor_updates=1, n_step=3,
                   offline_share=0.5, warmup=10_000, critic_warmup=10_000, capacity=200_000, action_scale=0.1,
                   noise=0.05, noise_clip=0.3, warmup_noise=0.2, q_range=None, layer_norm=True, target_noise=True),
    # arXiv 2302.02948, appendix and code; −|A|/2 where no entropy is given
    "rlpd": of(hidden=(256, 256), ensemble=10, subset=2, layer_norm=True, lr=3e-4, discount=0.99, tau=0.005,
                 batch=256, updates=20, offline_share=0.5, warmup=5000, capacity=1_000_000, alpha=1.0,
                 target_entropy=None, backup_entropy=True, replacement=False, temperature="exp",
                 temperature_at="observation", activation="relu", actor_layer_norm=False, standardise=False),
    # arXiv 1812.05905, table 1 of appendix D; −|A| where no entropy is given
    "sac": of(hidden=(256, 256), lr=3e-4, alpha_lr=3e-4, discount=0.99, tau=0.005, batch=256, updates=1,
                capacity=1_000_000, target_entropy=None, actor_q="min", learn_alpha=True, alpha=1.0, layer_norm=False,
                ensemble=2),
    # arXiv 2401.16013, code: launcher.py and the agents' defaults for pictures
    "serl": of(hidden=(256, 256), channels=(32, 64, 128, 256), ensemble=10, subset=2, critic_actor_ratio=4, lr=3e-4,
                 discount=0.96, tau=0.005, alpha=0.01, backup_entropy=False, batch=256, offline_share=0.5, warmup=300,
                 capacity=200_000),
    # arXiv 1802.09477, section 6.1 and table 3 of the appendix; warm-up of the small tasks
    "td3": of(hidden=(400, 300), lr=1e-3, discount=0.99, tau=0.005, batch=100, updates=1, warmup=1000,
                capacity=1_000_000, noise=0.1, target_noise=0.2, noise_clip=0.5, delay=2),
    # --- diffusion -------------------------------------------------------------------------------------------------
    # arXiv 2311.12908, section 5.1 (batch); the launcher for Stable Diffusion 1.5
    "diffusion-dpo": of(beta=5000.0, batch=2048, lr=2.05e-5, warmup=500),
    "diffusion-sft": of(batch=2048),  # arXiv 2410.05255, experiments: the batch of all that it compares
    "diffusion-spin": of(batch=2048),
    # arXiv 2410.05255, experiments (batch, thirty updates a checkpoint), algorithm 1
    "seppo": of(stage=30, batch=2048, aaf="sign", ref_strategy="random"),
    # --- exact -----------------------------------------------------------------------------------------------------
    "context-semi-bandit-ftpl": {},
    "exp2": {},
    "horizon-free-rfe": {},
    "lipschitz-certificate": {},
    "lipschitz-imitation": {},
    "online-offline": of(beta=0.1),  # arXiv 2405.08448, appendix B
    "realizability": {},
}  # fmt: skip
"""From the paper or, where it says nothing, from its authors' code."""

CLONED = of(base=None, base_policy="flow", base_hidden=WIDE, base_updates=5000, base_lr=3e-4, denoising_steps=10)
"""The base that is cloned where none is given: a flow has the deterministic map of noise to actions that DDIM has."""

OURS = {
    "adaptthink": of(end_of_thinking="</think>", start_of_response="Alright", opening_of_thinking="<think>"),
    "apo": of(stcr_half=None),  # another way to name the base
    "bgpo": of(draw="count"),  # silent: same mean as t ~ U[0, 1], less variance
    "vrpo-ol": of(draw="count"),  # as bgpo
    "diffu-grpo": of(clip=0.2),  # d1 has 0.5 and twelve updates a batch; with one update no clip acts
    "cispo": of(group_size=8, clip_high=0.28),  # silent ("tuned"): that of DAPO
    # silent: the coefficient, examples, rules of the buffers
    "cog-rethinker": of(imitation_coef=0.1, examples=2, capacity=256, kept=4, rl_on_stages="own_prompt", max_rounds=3),
    "copg": of(group_size=8, responses="sampled", replay=0),  # the paper has pairs; all pairs of a group here
    # silent: the four values of the schedule; the rest is the base method's
    "d3s": of(group_size=8, clip=0.2, rows_init=0.25, rows_final=0.75, tokens_init=0.2, tokens_final=0.8, kl_coef=1e-3),
    "dapo": of(max_rounds=10),  # silent: when to go on with what there is
    "dr-grpo": of(clip=0.2),  # that of GRPO
    # silent: group, clip, mean or sum, annealing; KL off as no coefficient is stated
    "expo-self-explanation": of(group_size=8, likelihood="mean", schedule="constant", clip=0.2, kl_coef=0.0,
                                  marker="The answer is", conclusion="\nThe answer is {answer}."),
    "grao": of(stats="outputs+reference"),  # the text says both
    # group and coefficient of the KL term as verl's users have them (the paper: 64 and 0.04), clip and eps verl's own
    "grpo": of(group_size=8, clip=0.2, std="sample", eps=1e-6, kl_coef=1e-3),
    "gspo": of(group_size=8),  # silent
    "ngrpo": {},
    # silent: thresholds; rows without repetition, of two rules that are about equally good the one with less variance
    "pf-ppo": of(rule="best-worst", with_replacement=False, high=0.0, low=0.0),
    # one response, λ as in control, value clip and KL as verl has them (arXiv 2203.02155: a KL of 0.02)
    "ppo": of(group_size=1, lam=0.95, value_clip=0.5, std="sample", normalise_reward=False, kl_coef=1e-3),
    "reinforce-pp": of(clip=0.2, kl_coef=1e-3),  # as verl has them
    "rloo": {},
    "sapo": of(group_size=8),  # silent
    "vade": of(init="flat"),  # silent: the curves suggest a first visit to each, which costs
    "dpo": of(pairing="best_worst", window=0),  # silent: more than two responses; order of a stream
    "drift": of(minibatches=4),  # a round is one step of the loop
    "ipo": of(beta=0.1, pairing="best_worst", window=0),  # τ is swept in the paper; TRL's
    "iterative-dpo": of(samples=4, pairing="best_worst", minibatches=4, reference="round"),  # there is no first one
    "kto": {},
    "mcts-dpo": of(step_end="\n", novel_bonus=False),  # ±1 alone, the paper's form, without the bonus of its code
    "online-dpo": of(pairing="first_round", missing_end=0.0),  # TRL's option, off as there
    "opa-dpo": of(aggregate="sequence"),  # the code takes the loss at every position
    "orpo": of(pairing="best_worst", window=0),
    "rso": {},
    "simpo": of(pairing="best_worst", window=0),
    "slic": of(delta=1.0, coef=0.5, pairing="best_worst", window=0),  # silent: the usual values
    "spin": of(minibatches=4),  # an iteration is one step of the loop
    "bradley-terry": {},
    "mdlm": of(samples=1, draw="count"),  # as bgpo
    "otr": of(beta=-0.1),  # "slightly negative"
    "sft": of(aggregation="token-mean"),  # no paper of its own
    # silent for vectors of numbers
    "bc": of(policy="flow", hidden=WIDE, lr=3e-4, batch=256, average=0.005, standardise=True, chunk=1),
    "bcq": {},
    "bve": {},
    "cql": {},
    "crr": {},
    "dqn": {},
    "mce": {},
    "qr-dqn": {},
    "rem": {},
    # ten episodes of the base, a pair of the two critics; a million transitions, of ten million in the code
    "dsrl": of(**CLONED, subset=2, warmup=None, capacity=1_000_000, offline_share=0.0, chunk=1),
    "dsrl-sac": of(**CLONED, warmup=None, capacity=1_000_000, chunk=1),
    # a target of the entropy that small edits can reach; no pre-training unless it is asked for
    "expo-expressive": of(base=None, base_policy="flow", base_hidden=WIDE, base_updates=0, warmup=None,
                            feasible_target=True, chunk=1),
    "harpg": of(horizon=1000, memory=0.9, hidden=None),  # silent: the baseline at a batch of one
    "npg-igt": of(horizon=1000, memory=0.9, hidden=None),
    "hnpg": of(environments=200, rollout=None),  # a thousand steps of a lock of five
    "lipschitz-bc": of(alpha=10.0, hidden=(64, 64), lr=3e-3, batch=256),  # only the abstract could be read
    "ppo-control": {},
    "props": of(anneal=False, measure_error=False),  # rates are constant in its arguments; a measurement
    # for observations that are numbers: the paper's rates and networks are for features of pictures
    "resfit": of(**CLONED, hidden=(256, 256), actor_lr=3e-4, critic_lr=3e-4, loss_form="mean"),
    "rlpd": {},
    "sac": of(warmup=None, alpha_form="log_alpha"),  # silent: ten episodes; implementations disagree
    "serl": of(reward="environment", standardise=False),
    "td3": {},
    "diffusion-dpo": of(weight_decay=0.01, clip=1.0),  # AdamW's own; clip of its code
    # silent: those of Diffusion-DPO, with AdamW's own weight decay
    "diffusion-sft": of(lr=2.05e-5, warmup=500, weight_decay=0.01, clip=1.0),
    "diffusion-spin": of(beta=5000.0, stage=30, lr=2.05e-5, warmup=0, weight_decay=0.01, clip=1.0),
    "seppo": of(beta=5000.0, lr=2.05e-5, warmup=0, weight_decay=0.01, clip=1.0, ref_every="update", pool=None),
    # theory without numbers: a stream, constants, and (None) C = T^¼ and ε = α
    "context-semi-bandit-ftpl": of(data="halfspaces", rounds=2000, cases=4, penalty=None, oracle="finite", noise=0.05,
                                     separators=16, draws=50, most=40, alpha=0.1, gamma=0.5, epsilon=None, seed=0),
    "exp2": of(data="halfspaces", rounds=2000, cases=4, penalty=None, rate=5.0, feedback="semi", alpha=0.1, gamma=0.5,
                 epsilon=None, seed=0),
    # the proof's β explores nothing that could be run
    "horizon-free-rfe": of(instance=None, features=None, states=None, actions=None, horizon=8, episodes=200, beta=0.3,
                             certify=1.0, moments=4, mode="hf", random_rewards=20, data="", env="", seed=0),
    "lipschitz-certificate": of(policy=None, demos=None, disturbance=0.05, expert=None, overshoot=None, rate=None,
                                  input_gain=None, episodes=5, directions_tried=16, seed=0),
    "lipschitz-imitation": of(plant="double-integrator", demos=None, samples=None, noise=None, alpha=None,
                                policy="extension", disturbance=0.05, horizon=100, directions_tried=16, updates=None,
                                seed=0),
    # of a world of log-linear policies, which the paper has not
    "online-offline": of(seed=0, loss="squared", steps=3000, lr=1.0, prompts=200, answers=300, pairs=600),
    "realizability": of(instance=None, p=None, states=None, actions=None, features=None, n=None, discount=0.9,
                          how="crossfit", data="", seed=0),
}  # fmt: skip
"""Where the paper is silent, or a method differs from it and says so in its header."""


@pytest.mark.parametrize("slug", METHODS)
def test_defaults_are_the_papers_or_have_a_reason(slug):
    assert slug in PAPER and slug in OURS, f"enter {slug} in PAPER and in OURS"
    assert not PAPER[slug].keys() & OURS[slug].keys()
    known = PAPER[slug] | OURS[slug]
    for name, value in known.pop("optimiser", {}).items():
        assert getattr(METHODS[slug].recipe().optimiser, name) == value, name
    assert known == {name: knob.default for name, knob in METHODS[slug].knobs.items()}


def test_they_are_of_methods_that_there_are():
    assert PAPER.keys() == OURS.keys() == METHODS.keys()
