"""Measures of offline data sets, the data sets themselves, and what the command line says about them."""

import json
import math

import numpy as np
import pytest
import torch

from anypolicy import catalogue
from anypolicy.cli.app import main
from anypolicy.data.demonstrations import Episode, episodes_of, load_episodes, save_episodes
from anypolicy.data.transitions import concatenate
from anypolicy.errors import InputError
from anypolicy.families.control import resume, train_controller
from anypolicy.learners.base import uniform
from anypolicy.parts.coverage import (
    binned,
    discounted_return,
    normalised_entropy,
    occupancy_entropy,
    pair_counts,
    reward_sparsity,
    saco,
    tq,
    unique_pairs,
)
from anypolicy.studies import inspection
from anypolicy.studies.datasets import (
    KINDS,
    DatasetSettings,
    collect,
    either,
    make_datasets,
    mean_return,
    mixed,
    part_of,
    random_return,
)
from anypolicy.studies.inspection import DatasetReport, cloned_entropy, dataset_report, recommend, regions_of
from anypolicy.tasks.control.demonstrations import load_demonstrations
from anypolicy.tasks.control.environments import load_environment


def episode(n, rng, *, terminated=True, choices=2, rewards=None):
    """n steps of random walk in three dimensions."""
    over = torch.zeros(n)
    over[-1] = float(terminated)
    reward = torch.ones(n) if rewards is None else torch.tensor(rewards, dtype=torch.float32)
    action = torch.randint(choices, (n, 1), generator=rng).float()
    return Episode(torch.randn(n + 1, 3, generator=rng).cumsum(0), action, reward, over, torch.zeros(n))


@pytest.fixture
def episodes():
    rng = torch.Generator().manual_seed(0)
    return [episode(n, rng) for n in (5, 9, 2, 14)]


# --- measures --------------------------------------------------------------------------------------------------------
def test_quality():
    rewards = [np.ones(2), np.ones(3), np.ones(1)]
    returns = [discounted_return(r) for r in rewards]
    assert returns == [2, 3, 1]
    assert tq(returns, 1.5, 5.0) == pytest.approx(0.142857, abs=1e-6)
    assert np.mean([discounted_return(r, 0.95) for r in rewards]) == pytest.approx(1.934167, abs=1e-6)
    assert tq([0.0], 1.5, 5.0) < 0 and tq([9.0], 1.5, 5.0) > 1, "never clipped"
    for wrong in ((5.0, 5.0), (5.0, 1.5)):
        with pytest.raises(InputError, match="g_max"):
            tq(returns, *wrong)
    with pytest.raises(InputError, match="finished"):
        tq([], 1.5, 5.0)


def test_bins():
    x = np.array([0, 0.004, 0.0101, 0.0102, 0.5, 0.9999, 1, 1.2, -0.1])[:, None]
    assert binned(x, np.array([[0.0, 1.0]]))[:, 0].tolist() == [1, 1, 1, 2, 50, 99, 100, 100, 0]
    assert len(set(binned(np.full((5, 1), 0.3), np.array([[0.3, 0.3]])).ravel().tolist())) == 1, "one value, one bin"


def test_entropy_and_coverage():
    counts = np.array([5, 3, 2])
    assert occupancy_entropy(counts) == pytest.approx(1.029653, abs=1e-6)
    assert math.exp(occupancy_entropy(counts)) == pytest.approx(2.800094, abs=1e-6)
    assert saco(50, 200) == 0.25
    assert saco(50, 200, log=True) == pytest.approx(0.738352, abs=1e-6)
    assert saco(77, 77) == 1 and saco(77, 77, log=True) == 1
    for u_ref, log in ((0, False), (0, True), (1, True)):
        with pytest.raises(InputError, match="u_ref"):
            saco(5, u_ref, log=log)


def test_pairs_are_counted_exactly_or_in_bins():
    seen, acted = np.array([[0.0, 0.0], [0.0, 0.0], [-0.0, 0.0], [0.5, 0.0], [0.501, 0.0]]), np.array([0, 1, 0, 0, 0])
    assert unique_pairs(seen, acted) == 4, "−0 is 0"
    assert sorted(pair_counts(seen, acted)) == [1, 1, 1, 2]
    limits = np.array([[0.0, 1.0], [0.0, 0.0]])
    assert unique_pairs(seen, acted, limits) == 3
    assert unique_pairs(seen, acted, limits, 2) == 2, "one bin between two edges"
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="row 1"):
            unique_pairs(np.array([[0.0], [bad]]), np.array([0, 0]))
    with pytest.raises(InputError, match="no transition"):
        unique_pairs(np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(InputError, match="bins"):
        unique_pairs(seen, acted, limits, 1)


def test_the_bound_and_the_invariances_hold():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, k = rng.integers(1, 80), rng.integers(1, 4)
        seen, acted = rng.integers(0, 4, (n, k)).astype(float), rng.integers(0, 3, n)
        counts = pair_counts(seen, acted)
        u = len(counts)
        assert u == len({(*s, a) for s, a in zip(seen.tolist(), acted.tolist())}) and counts.sum() == n
        assert math.exp(occupancy_entropy(counts)) <= u * (1 + 1e-12)
        order = rng.permutation(np.repeat(np.arange(n), 2))
        assert unique_pairs(seen[order], acted[order]) == u
        limits = np.stack([seen.min(0), seen.max(0)], 1)
        assert unique_pairs(seen, acted, limits) == u, "a few whole numbers: every value has its own bin"
        assert unique_pairs(seen[order], acted[order], limits) == u


def test_sparsity_and_the_entropy_of_behaviour():
    assert reward_sparsity([np.array([0.0, 0, 1]), np.array([1.0])]) == pytest.approx(1 / 3)
    assert normalised_entropy(np.zeros((3, 4))) == pytest.approx(1)
    assert normalised_entropy(np.array([[100.0, 0.0]])) == pytest.approx(0, abs=1e-12)
    p = np.array([0.7, 0.2, 0.1])
    assert normalised_entropy(np.log(p)[None] + 3) == pytest.approx(-(p * np.log(p)).sum() / np.log(3))
    assert normalised_entropy(np.ones((2, 1))) == 0


def test_a_certain_behaviour_has_little_entropy_and_a_random_one_much():
    rng, made = torch.Generator().manual_seed(0), {}
    for name in ("certain", "random"):
        seen = torch.randn(601, 3, generator=rng)
        action = (seen[:-1, :1] > 0).float() if name == "certain" else torch.randint(2, (600, 1), generator=rng).float()
        data = [
            Episode(0 * seen if name == "random" else seen, action, torch.ones(600), torch.zeros(600), torch.zeros(600))
        ]
        made[name] = cloned_entropy(data, 2, seed=0)
        assert made[name] == cloned_entropy(data, 2, seed=0)
    assert made["certain"] < 0.3 and made["random"] > 0.9


def test_the_report(episodes):
    rng = torch.Generator().manual_seed(1)
    cut = episode(6, rng, terminated=False, rewards=[100.0] * 6)
    r = dataset_report([*episodes, cut], [*episodes, cut], 1.0, 11.0, choices=3)
    assert (r.n_episodes, r.transitions, r.saco, r.lsaco) == (4, 36, 1.0, 1.0), "an unfinished episode has no return"
    assert r.mean_return == 7.5 and r.tq == pytest.approx(0.65) and r.mean_length == 7.5
    assert math.exp(r.entropy) <= r.u * (1 + 1e-12) and r.u == r.u_ref
    half = dataset_report(episodes[:2], episodes, 1.0, 11.0, choices=3, bins=None)
    assert half.u == 14 and half.u_ref == 30 and half.saco == pytest.approx(14 / 30)
    assert half.lsaco == pytest.approx(math.log(14) / math.log(30))
    assert dataset_report(episodes, episodes, 1.0, 11.0, choices=3, gamma=0.5).mean_return < 2
    box = dataset_report(episodes, episodes, 1.0, 11.0, choices=None)
    assert box.bc_entropy is None and box.u == dataset_report(episodes, episodes, 1.0, 11.0, choices=2).u
    still = Episode(torch.zeros(5, 3), torch.tensor([[0.0], [1], [2], [1]]), *torch.zeros(3, 4).unbind())
    assert dataset_report([*episodes, still], episodes, 1.0, 11.0, choices=None).u == box.u + 2, "1 is the highest bin"
    wide, narrow = (Episode(torch.tensor(seen)[:, None], torch.zeros(4, 1), torch.ones(4), torch.tensor([0.0, 0, 0, 1]),
                            torch.zeros(4)) for seen in ([0.0, 1, 2, 99, 0], [0.0, 0.5, 0.6, 1.2, 0]))  # fmt: skip
    found = dataset_report([narrow], [wide], 1.0, 11.0, choices=2)
    assert (found.u, found.u_ref) == (2, 4), "bins are those of the reference, one wide here"
    with pytest.raises(InputError, match="actions 0 to 0"):
        dataset_report(episodes, episodes, 1.0, 11.0, choices=1)
    with pytest.raises(InputError, match="finished"):
        dataset_report([cut], episodes, 1.0, 11.0, choices=3)
    with pytest.raises(InputError, match="gamma"):
        dataset_report(episodes, episodes, 1.0, 11.0, choices=3, gamma=0.0)


def report_at(quality, coverage):
    return DatasetReport(quality, coverage, coverage, 1, 1, 0.0, 1, 1, 0.0, 1.0, 0.0, None)


def test_recommendations_follow_the_cards():
    at = lambda *place: [slug for slug, _ in recommend(report_at(*place))]  # noqa: E731
    assert set(at(0.9, 0.3)) == {"bc", "bcq", "cql", "crr"} and at(0.9, 0.3)[0] == "bc"
    assert at(0.3, 0.9)[:2] == ["crr", "bcq"] and {"dqn", "qr-dqn", "rem"} <= set(at(0.3, 0.9))
    assert not {"dqn", "qr-dqn", "rem", "bve", "mce", "bc"} & set(at(0.3, 0.3))
    assert set(at(0.9, 0.9)) == {"crr", "bcq", "cql"}
    assert regions_of(report_at(0.9, 0.9)) == ["return", "coverage"] and regions_of(report_at(0.8, 0.6)) == ["all"]
    assert "92 % where TQ > 0.8" in dict(recommend(report_at(0.9, 0.3)))["bc"]
    for m in catalogue.methods("control").values():
        assert not m.card.regions or set(m.card.regions) == set(inspection.REGIONS)


# --- data sets -------------------------------------------------------------------------------------------------------
def test_a_stream_is_cut_into_episodes_and_back(episodes):
    stream = concatenate([e.transitions(1.0) for e in episodes])
    again = episodes_of(stream)
    for a, b in zip(episodes, again, strict=True):
        assert torch.equal(a.observation, b.observation) and torch.equal(a.action, b.action)
        assert torch.equal(a.terminated, b.terminated)
    assert not episodes_of(stream.select(torch.arange(len(stream) - 1)))[-1].finished


def test_mixing_makes_no_step_from_one_to_the_other(episodes):
    rng = torch.Generator().manual_seed(5)
    other = [episode(n, rng) for n in (11, 4, 15)]
    made = mixed(episodes, other, 0.8)
    whole = concatenate([e.transitions(1.0) for e in made])
    a, b = (concatenate([e.transitions(1.0) for e in x]) for x in (episodes, other))
    assert len(whole) == 30
    assert torch.equal(whole.next_observation[:24], a.next_observation[:24])
    assert torch.equal(whole.next_observation[24:], b.next_observation[24:])
    assert torch.equal(whole.observation[24:], b.observation[24:])
    seam = [e for e in made if not e.finished]
    assert len(seam) == 1 and float(seam[0].transitions(1.0).truncated[-1]) == 1
    assert sum(len(e.reward) for e in part_of(episodes, 4, 17)) == 13


def test_a_share_of_the_actions_is_another_policys():
    def always(action):
        return lambda seen, rng: torch.full((len(seen), 1), action)

    rng = torch.Generator().manual_seed(0)
    for share in (0.0, 0.2, 1.0):
        assert float(either(always(1.0), share, always(0.0))(torch.zeros(20_000, 2), rng).mean()) == pytest.approx(
            share, abs=0.01
        )


SETTINGS = {"task": "gym/CartPole-v1:max_steps=60", "transitions": 400, "evaluations": 2, "eval_episodes": 3}
KNOBS = {"hidden": (16, 16), "lr": 3e-3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five small data sets of CartPole, by the command line."""
    out = tmp_path_factory.mktemp("made") / "data"
    command = ["make-datasets", "dqn", "--task", SETTINGS["task"], "--transitions", "400", "--evaluations", "2",
               "--eval-episodes", "3", "--dqn.hidden", "16", "16", "--dqn.lr", "3e-3", "--seed", "1", "--quiet"]  # fmt: skip
    assert main([*command, "--out", str(out)]) == 0
    return out


def test_five_data_sets_of_cartpole(made, tmp_path):
    facts = json.loads((made / "datasets.json").read_text())
    kinds = {kind: load_episodes(made / f"{kind}.safetensors") for kind in KINDS}
    assert facts["g_max"] == max(v for _, v in facts["online"]) > facts["g_min"]
    assert [step for step, _ in facts["online"]] == [200, 400]
    for kind, episodes in kinds.items():
        assert sum(len(e.reward) for e in episodes) == 400, kind
        for e in episodes[:-1]:
            assert e.finished or kind == "mixed"
        for e in episodes:
            assert bool((e.action == e.action.round()).all()) and len(e.observation) == len(e.reward) + 1
    first = kinds["random"][0]
    assert torch.equal(kinds["mixed"][0].observation, first.observation)
    assert torch.equal(kinds["mixed"][-1].observation, kinds["expert"][-1].observation)
    assert abs(float(torch.cat([e.action for e in kinds["random"]]).mean()) - 0.5) < 0.1
    again = make_datasets("dqn", DatasetSettings(out=tmp_path / "again", seed=1, **SETTINGS), KNOBS, quiet=True)
    assert again.g_max == facts["g_max"] and again.g_min == facts["g_min"]
    for kind, episodes in again.kinds.items():
        assert all(torch.equal(a.observation, b.observation) for a, b in zip(episodes, kinds[kind], strict=True))


def test_the_expert_is_the_best_policy_or_the_last(made, tmp_path):
    """Whose greedy actions they are: a run of as many steps with the same seed says."""
    online = json.loads((made / "datasets.json").read_text())["online"]
    best = max(online, key=lambda x: x[1])[0]
    assert best == 200 and online[1][0] == 400
    settings = DatasetSettings(out=tmp_path / "final", seed=1, behaviour="final", **SETTINGS)
    last = make_datasets("dqn", settings, KNOBS, quiet=True).kinds["expert"]
    for steps, episodes in ((200, load_episodes(made / "expert.safetensors")), (400, last)):
        run = train_controller("dqn", task=SETTINGS["task"], steps=steps, seed=1, trackers=(), quiet=True, knobs=KNOBS,
                               out=tmp_path / str(steps), eval_episodes=1)  # fmt: skip
        for e in episodes:
            greedy = run.learner.act(e.observation[:-1], torch.Generator(), explore=False).executed
            assert torch.equal(greedy, e.action)


def test_a_mean_return_is_that_of_finished_episodes(episodes):
    cut = episode(6, torch.Generator().manual_seed(1), terminated=False, rewards=[100.0] * 6)
    assert mean_return([*episodes, cut]) == 7.5
    with pytest.raises(InputError, match="no episode ended"):
        mean_return([cut])


def test_inspecting_a_folder_a_file_a_run_and_minari(made, tmp_path, capsys, monkeypatch):
    figure = tmp_path / "plane.svg"
    assert main(["inspect", str(made), "--figure", str(figure), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert all(kind in said for kind in KINDS) and "SACo > 0.8" in said and "<svg" in figure.read_text()
    assert main(["inspect", str(made / "expert.safetensors"), "--json", "--figure", str(tmp_path / "one.png")]) == 0
    [(name, found)] = json.loads(capsys.readouterr().out).items()
    facts = json.loads((made / "datasets.json").read_text())
    assert name == "expert" and (tmp_path / "one.png").stat().st_size > 1000
    assert found["tq"] == pytest.approx((found["mean_return"] - facts["g_min"]) / (facts["g_max"] - facts["g_min"]))
    assert found["recommended"] and found["u_ref"] >= 1
    run = train_controller("dqn", task=SETTINGS["task"], steps=150, trackers=(), quiet=True, out=tmp_path / "run",
                           knobs=KNOBS | {"capacity": 100}, eval_episodes=1)  # fmt: skip
    assert main(["inspect", str(run.path), "--reference", str(run.path), "--g-max", "60", "--exact", "--json",
                 "--figure", str(figure)]) == 0  # fmt: skip
    [found] = json.loads(capsys.readouterr().out).values()
    assert found["saco"] == 1 and found["u"] == found["transitions"] < 100, "the oldest episode has lost its beginning"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert main(["record", str(run.path), "--episodes", "4", "--explore", "--out", "minari:cart/dqn-v0"]) == 0
    capsys.readouterr()
    assert main(["inspect", "minari:cart/dqn-v0", "--task", SETTINGS["task"], "--reference", str(made / "replay.safetensors"),
                 "--g-min", "20", "--g-max", "60", "--json", "--figure", str(figure)]) == 0  # fmt: skip
    [found] = json.loads(capsys.readouterr().out).values()
    assert found["n_episodes"] == 4
    offline = train_controller("cql", task=SETTINGS["task"], steps=2, trackers=(), quiet=True, out=tmp_path / "cql",
                               knobs={"hidden": (8,)}, demos=str(made / "expert.safetensors"), eval_episodes=1)  # fmt: skip
    with pytest.raises(InputError, match="no replay"):
        inspection.inspect([str(offline.path)], reference=str(made / "replay.safetensors"), g_max=60.0, quiet=True)


def arrays_of(episodes):
    stream = concatenate([e.transitions(1.0) for e in episodes])
    return {name: getattr(stream, name).numpy() for name in
            ("observation", "action", "reward", "next_observation", "terminated", "truncated")}  # fmt: skip


def test_plain_arrays_are_a_data_set(made, tmp_path, capsys):
    episodes = load_episodes(made / "replay.safetensors")
    arrays = arrays_of(episodes)
    np.savez(tmp_path / "log.npz", **arrays | {"action": arrays["action"][:, 0].astype(np.int64)})
    given = ["--task", SETTINGS["task"], "--reference", str(made / "replay.safetensors"), "--g-min", "20", "--g-max", "60",
             "--json", "--figure", str(tmp_path / "p.svg")]  # fmt: skip
    found = []
    for path in (tmp_path / "log.npz", made / "replay.safetensors"):
        assert main(["inspect", str(path), *given]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert list(found[0]) == ["log"] and found[0]["log"]["u"] == found[1]["replay"]["u"]
    assert found[0]["log"]["transitions"] == 400 and found[0]["log"]["saco"] == 1
    run = train_controller("cql", task=SETTINGS["task"], steps=2, trackers=(), quiet=True, out=tmp_path / "cql",
                           knobs={"hidden": (8,)}, demos=str(tmp_path / "log.npz"), eval_episodes=1)  # fmt: skip
    assert len(run.rows) > 0
    box, rng = load_environment("gym/Pendulum-v1"), torch.Generator().manual_seed(0)
    seen = torch.randn(7, 3, generator=rng)
    unit = torch.rand(6, 1, generator=rng) * 2 - 1
    zeros = torch.zeros(6)
    arrays = arrays_of([Episode(seen, unit, zeros, zeros, torch.tensor([0.0, 0, 0, 1, 0, 0]))])
    np.savez(tmp_path / "box.npz", **arrays | {"action": 2 * arrays["action"]})
    first, second = load_demonstrations(str(tmp_path / "box.npz"), box)
    assert len(first.reward) == 4 and first.finished and torch.allclose(first.action, unit[:4])
    assert torch.equal(first.observation, seen[:5]) and torch.equal(second.observation, seen[4:])


@pytest.mark.parametrize(("change", "says"), [
    ({"reward": None}, "'reward'"), ({"truncated": np.zeros(3)}, r"truncated.*\(30, 1\)"),
    ({"observation": np.zeros((30, 2))}, r"observation.*\(30, 4\)"), ({"action": np.full(30, 2.0)}, "actions 0 to 1"),
    ({"next_observation": np.full((30, 4), np.nan)}, "finite"), ({"rewards": np.zeros(30)}, "did you mean 'reward'"),
    ({"action": np.full(30, 0.5)}, "episode 0, row 0: 0.5"), ({"reward": np.zeros(0)}, "no transition"),
])  # fmt: skip
def test_arrays_that_are_no_data_set(change, says, tmp_path):
    rng, zeros = np.random.default_rng(0), np.zeros(30)
    arrays = {"observation": rng.normal(size=(30, 4)), "next_observation": rng.normal(size=(30, 4)), "action": zeros,
              "reward": zeros, "terminated": zeros, "truncated": zeros} | change  # fmt: skip
    np.savez(tmp_path / "log.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError, match=says):
        load_demonstrations(str(tmp_path / "log.npz"), load_environment("gym/CartPole-v1"))


def test_an_offline_learner_trains_on_a_made_data_set(made, tmp_path):
    settings = {"task": SETTINGS["task"], "demos": str(made / "mixed.safetensors"), "trackers": (), "quiet": True,
                "eval_episodes": 1, "knobs": {"hidden": (8, 8)}}  # fmt: skip
    whole = train_controller("bve", steps=40, out=tmp_path / "whole", **settings)
    train_controller("bve", steps=20, out=tmp_path / "half", **settings)
    assert resume(tmp_path / "half", steps=40, quiet=True).rows[-1] == whole.rows[-1]


def test_five_data_sets_of_minigrid(tmp_path, capsys):
    """Made, measured by exact codes and by bins, drawn, and learnt from."""
    command = ["make-datasets", "dqn", "--task", "gym/MiniGrid-Dynamic-Obstacles-5x5-v0:max_steps=20", "--transitions",
               "250", "--evaluations", "2", "--eval-episodes", "3", "--dqn.hidden", "16", "--dqn.lr", "3e-3", "--quiet"]  # fmt: skip
    out = tmp_path / "grid"
    assert main([*command, "--out", str(out)]) == 0
    found = []
    for how in ("--exact", "--quiet"):
        capsys.readouterr()
        assert main(["inspect", str(out), how, "--json", "--figure", str(tmp_path / "plane.png")]) == 0
        found.append(json.loads(capsys.readouterr().out))
    exact, binned_pairs = found
    assert list(exact) == list(KINDS) and (tmp_path / "plane.png").stat().st_size > 1000
    assert exact["replay"]["saco"] == 1 and abs(exact["random"]["tq"]) < 1e-9 and exact["random"]["bc_entropy"] > 0.9
    for kind in KINDS:
        assert binned_pairs[kind]["u"] <= exact[kind]["u"] <= 250 and exact[kind]["transitions"] == 250
    assert binned_pairs["replay"]["u"] == exact["replay"]["u"], "every code of the reference has its own bin"
    demos = str(out / "mixed.safetensors")
    run = train_controller("bcq", task="gym/MiniGrid-Dynamic-Obstacles-5x5-v0:max_steps=20", demos=demos, steps=5, quiet=True,
                           trackers=(), out=tmp_path / "bcq", knobs={"hidden": (8,)}, eval_episodes=1)  # fmt: skip
    assert run.rows


def test_data_of_minigrid_and_a_policy_that_learns_nothing(tmp_path):
    grid = load_environment("gym/MiniGrid-Empty-5x5-v0:max_steps=30")
    any_action = lambda seen, rng: uniform(grid.space, len(seen), rng).executed  # noqa: E731
    made = collect(any_action, grid, 200, 0, "random")
    assert sum(len(e.reward) for e in made) == 200 and all(len(e.reward) <= 30 for e in made)
    binned_report, exact = (dataset_report(made, made, 0.0, 1.0, choices=None, bins=b) for b in (100, None))
    assert binned_report.u == exact.u < 200, "every code has its own bin, and places are seen again"
    assert 0 <= exact.tq < 1 and exact.reward_sparsity > 0.9
    car = DatasetSettings("gym/MountainCar-v0:max_steps=20", tmp_path / "car", 80, evaluations=1, eval_episodes=1)
    with pytest.raises(InputError, match="let it learn longer"):
        make_datasets("dqn", car, {"hidden": (16,)}, quiet=True)
    assert not (tmp_path / "car").exists()
    assert random_return(load_environment(car.task), 3) == -20


def test_what_is_refused(made, tmp_path, episodes):
    save_episodes(tmp_path / "log.safetensors", episodes)
    log = str(tmp_path / "log.safetensors")
    task = "gym/CartPole-v1"
    for given, match in (({}, "task"), ({"task": task}, "reference"), ({"task": task, "reference": log}, "g_max"),
                         ({"figure": tmp_path / "x.gif"}, "figure")):  # fmt: skip
        with pytest.raises(InputError, match=match):
            inspection.inspect([log], **given)
    with pytest.raises(InputError, match="3 observations"):
        inspection.inspect([log], task=task, reference=log, g_max=500.0)
    for given in ([], [log, "--exact", "--bins", "50"]):
        assert main(["inspect", *given]) == 2
    with pytest.raises(InputError, match="bins"):
        dataset_report(episodes, episodes, 1.0, 11.0, choices=3, bins=0)
    for wrong, match in (({"epsilon": 1.5}, "epsilon"), ({"mix": -0.1}, "mix"), ({"transitions": 0}, "transitions")):
        with pytest.raises(InputError, match=match):
            make_datasets("dqn", DatasetSettings(**{"task": task, "out": tmp_path / "new"} | wrong))
    with pytest.raises(InputError, match="not empty"):
        make_datasets("dqn", DatasetSettings(task, made))
    with pytest.raises(InputError, match="by acting"):
        make_datasets("ppo-control", DatasetSettings(task, tmp_path / "new"))
    with pytest.raises(InputError, match="demos"):
        make_datasets("cql", DatasetSettings(task, tmp_path / "new"))
