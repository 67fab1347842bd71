"""The command line. Options are generated from the functions and the settings of the methods themselves."""

import dataclasses
import functools
import sys
import typing
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from anypolicy.errors import InputError, outliving
from anypolicy.knobs import Knob
from anypolicy.runs.ending import ended
from anypolicy.runs.strict_json import json_text

EXAMPLES = """Any policy learns by any published method.

  anypolicy train ngrpo --task reasoning-gym/chain_sum --policy smollm2-135m
  anypolicy train grpo+ngrpo.advantage+sapo.loss+vade.sampler --task my_prompts.jsonl
  anypolicy resume runs/ngrpo-tiny-add-0
  anypolicy train dpo --task preferences.jsonl --policy smollm2-135m
  anypolicy compare grpo ngrpo --task tabular-lock --seeds 5
  anypolicy reproduce ngrpo
  anypolicy train sac --task gym/HalfCheetah-v5 --steps 100000
  anypolicy record runs/sac-gym-HalfCheetah-v5-0 --out demos.safetensors
  anypolicy train seppo --task digits
  anypolicy solve horizon-free-rfe --out solved/rfe
  anypolicy make-datasets dqn --task gym/CartPole-v1 --out cartpole | inspect cartpole
  anypolicy reward-model bradley-terry --pairs preferences.jsonl --policy smollm2-135m --out rm
  anypolicy train pf-ppo --task my_prompts.jsonl --reward-model rm --reward-scale unit
  anypolicy scores pf-ppo --task my_prompts.jsonl --reward-model rm | filtration scores.jsonl
  anypolicy revise --task slots --out revisions.jsonl
  anypolicy methods | show ngrpo | explain ngrpo+vade --task tiny-add | eval DIR | open DIR
"""


@dataclass(frozen=True)
class NoKnobs:
    """No method, no settings of methods."""


def trained_by(specs: list[str], files: list[str], command: str) -> str:
    """What the named methods train: a policy, a reward model, a controller or a diffusion model."""
    from anypolicy import catalogue

    catalogue.load_files(files)
    own = {"reward-model": "reward-model", "solve": "problem", "make-datasets": "controller"}
    if command in own:
        return own[command]
    alone = {m.trains for spec in specs if (m := catalogue.methods(None).get(spec)) is not None}
    return next((kind for kind in ("controller", "diffusion-model") if kind in alone), "policy")


def knobs_type(specs: list[str], trains: Any) -> type:
    """A dataclass with one field a method: its function's parameters."""
    from anypolicy import catalogue
    from anypolicy.compose import parse

    parts: dict[str, Any] = {}
    for spec in specs:
        for m in [m for m, _ in parse(spec)] if trains == "policy" else [catalogue.get(spec, trains)]:
            hints = typing.get_type_hints(m.build)
            inner = [(k, helped(hints[k], m.meanings.get(k)), dataclasses.field(default=p.default))
                     for k, p in m.knobs.items()]  # fmt: skip
            own = dataclasses.make_dataclass(m.slug.replace("-", "_"), inner, frozen=True)
            own.__doc__ = f"Settings of {m.slug}: {m.card.idea}. {' '.join((m.build.__doc__ or '').split())}".strip()
            parts[m.slug.replace("-", "_")] = own
    if not parts:
        return NoKnobs
    outer = [(k, v, dataclasses.field(default_factory=v)) for k, v in parts.items()]
    return dataclasses.make_dataclass("Knobs", outer, frozen=True)


def helped(kind: Any, knob: Knob | None) -> Any:
    """The kind with what `--help` says of it."""
    if knob is None:
        return kind
    return Annotated[kind, tyro.conf.arg(help=knob.meaning + (f" ({knob.limits})" if knob.range else ""))]


def settings_type(trains: str) -> type:
    """The settings of a run that trains this, or of making data sets."""
    from anypolicy.families.control import ControlSettings
    from anypolicy.families.diffusion import DiffusionSettings
    from anypolicy.families.language import Settings
    from anypolicy.families.reward_models import RewardSettings
    from anypolicy.studies.datasets import DatasetSettings

    own = {"reward-model": RewardSettings, "controller": ControlSettings, "data": DatasetSettings,
           "diffusion-model": DiffusionSettings}  # fmt: skip
    return own.get(trains, Settings)


def changed(knobs: Any) -> dict[str, dict[str, Any]]:
    """Only the settings that differ from the methods' defaults, by slug."""
    out: dict[str, dict[str, Any]] = {}
    for f in dataclasses.fields(knobs):
        own = getattr(knobs, f.name)
        given = {k.name: getattr(own, k.name) for k in dataclasses.fields(own) if getattr(own, k.name) != k.default}
        if given:
            out[f.name.replace("_", "-")] = given
    return out


def settings_dict(settings: Any) -> dict[str, Any]:
    """The fields of Settings as keyword arguments."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}


# --- commands --------------------------------------------------------------------------------------------------------
def train_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def train(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        quiet: bool = False,
    ) -> None:
        """Train a policy.

        METHOD is a name or a composition: a+b takes what b changes, a+b.stage takes one stage.

          anypolicy train grpo --task tabular-lock --steps 50
          anypolicy train ngrpo+vade --task reasoning-gym/chain_sum --policy smollm2-135m
          anypolicy train grpo+ngrpo.advantage --task tiny-add --ngrpo.virtual-reward 1.0 --lr 3e-4
          anypolicy train grpo --task prompts.jsonl:verifier=numeric --policy path/to/model --dtype bfloat16
          anypolicy train sac --task gym/Pendulum-v1 --steps 20000
          anypolicy train seppo --task digits
        """
        from anypolicy.families import control, diffusion
        from anypolicy.families import language as training

        given = next(iter(changed(knobs).values()), {})
        if isinstance(settings, control.ControlSettings):
            finish_with(control, control.start(control.plan(method, settings, given), quiet=quiet), quiet)
            return
        if isinstance(settings, diffusion.DiffusionSettings):
            finish_with(diffusion, diffusion.start(diffusion.plan(method, settings, given), quiet=quiet), quiet)
            return
        run = training.start(training.plan(method, settings, changed(knobs)), quiet=quiet)
        finish(run, quiet)

    return train


def train_apart_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def train_apart(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        iterations: int = 10_000,
        send_every: int = 30,
        publish_every: int = 30,
        hertz: float | None = None,
        quiet: bool = False,
    ) -> None:
        """Train a controller in two processes, one that acts and one that learns; neither waits for the other.

          anypolicy train-apart serl --task wall --iterations 2000
          anypolicy train-apart rlpd --task fetchreach-sparse --demos scripted:episodes=20 --hertz 10

        Such a run depends on the machine's pace: it is not the same bits twice and cannot be resumed. It keeps its
        policy for `anypolicy eval` and `record`.

        Args:
            method: an off-policy method
            iterations: of the learner; the actor takes as many steps as it can meanwhile
            send_every: actor steps between two sendings of transitions
            publish_every: learner iterations between two publications of weights
            hertz: steps a second of the actor; default as many as it can
            quiet: no progress
        """
        from anypolicy.families.actor_and_learner import Pace, train_apart
        from anypolicy.families.control import ControlSettings

        if not isinstance(settings, ControlSettings):
            raise InputError("method", method, "actor and learner stand apart for off-policy controllers")
        given, own = settings_dict(settings), next(iter(changed(knobs).values()), {})
        task = given.pop("task")
        named = f"apart-{method}-{task}-{given['seed']}".replace("/", "-").replace(":", "-")
        out = given.pop("out") or Path("runs") / named
        pace = Pace(send_every, publish_every, hertz)
        run = train_apart(method, task=task, iterations=iterations, knobs=own, pace=pace, quiet=quiet, out=out, **given)
        print(
            f"{run.steps:,} environment steps, return {run.evaluation['eval/return']:.1f}\nnext: anypolicy eval {out}"
        )

    return train_apart


def finish(run: Any, quiet: bool) -> None:
    """Report of a finished run, on the screen and as a page."""
    from anypolicy.studies import run_page, run_summary

    page = run_page(run)
    if not quiet:
        print(run_summary(run, page))


def finish_with(family: Any, run: Any, quiet: bool) -> None:
    """Report of a finished run by the module of its family, on the screen and as a page."""
    where = family.page(run)
    if not quiet:
        print(family.summary(run, where))


def resume(run: Positional[Path], steps: int | None = None, quiet: bool = False, trust: bool = False) -> None:
    """Go on with a run that stopped, to the same numbers as if it had not.

      anypolicy resume runs/ngrpo-tiny-add-0
      anypolicy resume runs/ngrpo-tiny-add-0 --steps 400

    Args:
        run: the run directory
        steps: make the run this long in all
        quiet: no progress
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.families import control, diffusion, reward_models
    from anypolicy.families import language as training

    if control.is_control_run(run):
        finish_with(control, control.resume(run, steps=steps, quiet=quiet, trust=trust), quiet)
    elif diffusion.is_diffusion_run(run):
        finish_with(diffusion, diffusion.resume(run, steps=steps, quiet=quiet, trust=trust), quiet)
    elif not reward_models.is_reward_run(run):
        finish(training.resume(run, steps=steps, quiet=quiet, trust=trust), quiet)
    elif steps is not None:
        raise InputError("steps", steps, "a reward model is trained for the epochs it was started with")
    else:
        print(reward_models.resume(run, quiet=quiet, trust=trust))


def evaluate(
    run: Positional[Path], prompts: int | None = None, temperature: float = 0.0, episodes: int | None = None,
    video: Path | None = None, samples: int | None = None, trust: bool = False,
) -> None:  # fmt: skip
    """Evaluate a run's newest checkpoint: on held-out prompts, in fresh episodes, or by samples.

      anypolicy eval runs/ngrpo-tiny-add-0
      anypolicy eval runs/ngrpo-tiny-add-0 --prompts 500 --temperature 1
      anypolicy eval runs/sac-gym-Pendulum-v1-0 --episodes 20 --video pendulum.mp4

    Args:
        run: the run directory
        prompts: how many held-out prompts
        temperature: 0 is greedy
        episodes: of a controller: how many episodes
        video: of a controller: film the first episode into this .mp4 or .gif file
        samples: of a diffusion model: how many
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy import studies
    from anypolicy.families import control, diffusion, reward_models

    if diffusion.is_diffusion_run(run):
        if prompts is not None or temperature or episodes is not None or video is not None:
            raise InputError("eval", str(run), "a diffusion model is evaluated by --samples alone")
        print(json_text(diffusion.evaluate_run(run, samples=samples, trust=trust), indent=2))
        return
    if samples is not None:
        raise InputError("samples", samples, "only diffusion models are evaluated by samples")
    if control.is_control_run(run):
        if prompts is not None or temperature:
            raise InputError("prompts", prompts or temperature, "a controller is evaluated in --episodes")
        print(json_text(control.evaluate_run(run, episodes=episodes, video=video, trust=trust), indent=2))
        return
    if episodes is not None or video is not None:
        raise InputError("episodes", episodes or video, "only controllers act in episodes")
    if reward_models.is_reward_run(run):
        print(json_text(reward_models.evaluate(run, trust=trust), indent=2))
        return
    print(json_text(studies.evaluate(run, prompts=prompts, temperature=temperature, trust=trust), indent=2))


def record(run: Positional[Path], out: str, episodes: int = 20, explore: bool = False, trust: bool = False) -> None:
    """Write what a trained controller does as demonstrations for other methods (--demos).

      anypolicy record runs/sac-gym-Pendulum-v1-0 --episodes 40 --out pendulum.safetensors
      anypolicy record runs/sac-gym-Pendulum-v1-0 --out minari:pendulum/sac-v0

    Args:
        run: the run directory
        out: a .safetensors file, or minari:NAME for a Minari data set
        episodes: how many
        explore: act as while learning instead of as evaluated
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.families import control

    print(f"{control.record(run, episodes=episodes, out=out, explore=explore, trust=trust)} steps in {out}")


def make_datasets_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def make_datasets(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        quiet: bool = False,
    ) -> None:
        """Make five offline data sets from one online run: random, mixed, replay, noisy, expert.

        METHOD learns by acting; what it did and what it then does becomes the data sets.

          anypolicy make-datasets dqn --task gym/CartPole-v1 --out cartpole
          anypolicy make-datasets dqn --task gym/MiniGrid-Empty-5x5-v0 --transitions 20000 --out grid --dqn.lr 1e-3
        """
        from anypolicy.studies import datasets

        given: Any = settings
        made = datasets.make_datasets(method, given, next(iter(changed(knobs).values()), {}), quiet=quiet)
        for name, episodes in made.kinds.items():
            print(f"{given.out / name}.safetensors  {len(episodes)} episodes")
        print(f"mean return: random policy {made.g_min:.1f}, best evaluation {made.g_max:.1f}")
        print(f"next: anypolicy inspect {given.out}")

    return make_datasets


def inspect(
    data: Positional[tuple[str, ...]], task: str | None = None, reference: str | None = None,
    g_min: float | None = None, g_max: float | None = None, gamma: float = 1.0, bins: int | None = None,
    exact: bool = False, seed: int = 0, figure: Path = Path("plane.svg"),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False, quiet: bool = False, trust: bool = False,
) -> None:  # fmt: skip
    """Say what offline data sets are good for: TQ, SACo, further measures, and which learners do well there.

      anypolicy inspect cartpole
      anypolicy inspect log.safetensors --task gym/CartPole-v1 --reference replay.safetensors --g-max 500
      anypolicy inspect minari:mine/log-v0 --task gym/CartPole-v1 --reference minari:mine/replay-v0 --g-max 500
      anypolicy inspect runs/dqn-gym-CartPole-v1-0 --reference runs/dqn-gym-CartPole-v1-0 --g-max 500

    Args:
        data: .safetensors (episodes), .npz (arrays), folders of make-datasets, minari:NAME, runs (their replay)
        task: where the data are from; default as a folder or run says
        reference: the data set that SACo compares with; default the replay beside the data
        g_min: mean return of the random policy; default as the folder says, or measured in 100 episodes
        g_max: best mean return known; default as the folder says
        gamma: discount of the returns
        bins: edges on every axis of an observation, between the limits of the reference; default 100
        exact: count exact observations instead
        seed: of the fitted behaviour and of measured random returns
        figure: .svg or .png file for the plane
        json_output: all numbers and recommendations as JSON
        quiet: no progress
        trust: run code that the recipe of a run names, though you have not run it before
    """
    from anypolicy.studies import inspection

    if not data:
        raise InputError("data", "none", "name at least one data set")
    if exact and bins is not None:
        raise InputError("bins", bins, "--exact counts observations without bins: leave one of them out")
    edges = None if exact else 100 if bins is None else bins
    made = inspection.inspect(
        data, task=task, reference=reference, g_min=g_min, g_max=g_max, gamma=gamma, bins=edges,
        seed=seed, figure=figure, quiet=quiet or json_output, trust=trust,
    )  # fmt: skip
    if json_output:
        found = {
            k: dataclasses.asdict(r) | {"recommended": dict(inspection.recommend(r))} for k, r in made.reports.items()
        }
        print(json_text(found, indent=2, ensure_ascii=False))
    else:
        print(made)


def compare_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def compare(
        methods: Positional[tuple[str, ...]],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        seeds: int = 5,
        metric: str | None = None,
        workers: int = 1,
        equal_kl: bool = False,
        quiet: bool = False,
    ) -> None:
        """Train methods with the same seeds and judge the difference.

          anypolicy compare grpo ngrpo --task tabular-lock --seeds 5
          anypolicy compare grpo sapo gspo --task tiny-add --steps 200 --seeds 8 --workers 2 --metric eval/accuracy

        Args:
            methods: names or compositions
            settings: of every run
            knobs: of the methods
            seeds: runs of each method, with the same seeds in all
            metric: a name of the evaluation rows, e.g. eval/accuracy or probe/success
            workers: processes; give each run --threads 1 when using several
            equal_kl: judge runs at the largest divergence from the reference that all of them reached
            quiet: no progress
        """
        from anypolicy import studies

        given = settings_dict(settings)
        if given.pop("seed"):
            raise InputError("seed", settings.seed, "compare uses seeds 0, 1, …: set --seeds N")  # type: ignore[attr-defined]
        task = given.pop("task")
        out = given.pop("out")
        study = studies.compare(
            list(methods), task=task, seeds=seeds, out=out, metric=metric, knobs=changed(knobs), workers=workers,
            quiet=quiet, equal_kl=equal_kl, **given,
        )  # fmt: skip
        print(study)

    return compare


def reward_model_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def reward_model(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        quiet: bool = False,
    ) -> None:
        """Train a reward model on preference pairs.

        anypolicy reward-model bradley-terry --pairs preferences.jsonl --policy smollm2-135m --out rm
        """
        from anypolicy.families import reward_models

        given = next(iter(changed(knobs).values()), {})
        run = reward_models.start(reward_models.plan(method, settings, given), quiet=quiet)
        if not quiet:
            print(run)

    return reward_model


def solve_command(Knobs: type) -> Callable[..., None]:
    def solve(
        method: Positional[str],
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        out: Path | None = None,
    ) -> None:
        """Solve a problem exactly: every number with what it is (exact, estimate, bound) and what it rests on.

          anypolicy solve realizability
          anypolicy solve exp2 --exp2.data breast-cancer --out solved/exp2

        Args:
            method: its name; `anypolicy methods` lists those of the family "exact"
            out: new folder for solution.json and report.html
        """
        from rich.console import Console
        from rich.table import Table

        from anypolicy.families import exact

        found = exact.solve(method, out=out, **next(iter(changed(knobs).values()), {}))
        table = Table(box=None, header_style="bold")
        for column in exact.COLUMNS:
            table.add_column(column)
        for report in found.reports:
            table.add_row(*exact.row(report))
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        if out is not None:
            print(f"\n{out / 'report.html'}")

    return solve


def scores_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def scores(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    ) -> None:
        """Sample responses and write their reward beside the task's own score, for `filtration`.

        anypolicy scores pf-ppo --task my_prompts.jsonl --reward-model rm --prompts 200 --out scores.jsonl
        """
        from anypolicy.studies.filtration import collect_scores

        out, scored = collect_scores(method, settings, changed(knobs))
        print(f"{len(scored)} responses in {out}\nnext: anypolicy filtration {out}")

    return scores


def filtration(
    scores: Positional[Path], bins: int = 10, by: Literal["sample", "bins"] = "sample", with_replacement: bool = False,
    n_keep: int = 2, seed: int = 0,
) -> None:  # fmt: skip
    """Choose a filtration rule: R² between reward and true score on the responses that each rule keeps.

      anypolicy filtration scores.jsonl
      anypolicy filtration scores.jsonl --by bins --bins 20

    Args:
        scores: one response a line with prompt, reward and score
        bins: groups of equal count with similar reward
        by: pick by the R² per sample or by that of the groups' means
        with_replacement: draw responses from the rules' weights
        n_keep: how many to draw for a prompt
        seed: of ties and random choices
    """
    from anypolicy.studies import filtration as tool

    print(
        tool.filtration_table(
            tool.read_scores(scores), bins=bins, by=by, with_replacement=with_replacement, n_keep=n_keep, seed=seed
        )
    )


def revise(
    task: str, policy: str | None = None, out: Path = Path("revisions.jsonl"), prompts: int | None = None,
    seed: int = 0, max_tokens: int | None = None, dtype: Literal["float32", "bfloat16"] = "float32",
    expert: bool = True, quiet: bool = False,
) -> None:  # fmt: skip
    """Let the policy answer every training prompt once, and an expert correct it sentence by sentence.

      anypolicy revise --task slots --out revisions.jsonl
      anypolicy revise --task prompts.jsonl --policy path/to/model --no-expert --out to_be_revised.jsonl

    The task plays the expert where it can. With --no-expert the reports stay empty, for a person or a strong model to
    fill in. Images are kept in a folder beside the file.

    Args:
        task: prompts with reference answers
        policy: whose answers are corrected; default that of the task
        out: .jsonl file, one item a line
        prompts: only so many of the training prompts
        seed: of the task and of the sampling
        max_tokens: of an answer
        dtype: of the policy
        expert: let the task write the reports
        quiet: no progress
    """
    from anypolicy.studies import revisions

    given = revisions.Settings(task, policy, out, prompts, seed, max_tokens, dtype, expert)
    made = revisions.revise(given, quiet=quiet)
    print("\n".join([f"{made.items} items in {out}", *(f"  {n} dropped: {why}" for why, n in made.dropped.items())]))
    if expert:
        source, given = (
            (f"{out}:use=answers", f" --policy {policy}") if policy else (f"{out}:use=answers,task='{task}'", "")
        )
        print(f'next: anypolicy train sft --task "{source}"{given} --out runs/opa')
    else:
        print("next: fill in every line's report: sentence, score (1 to 4), error, rewrite")


def reproduce(
    method: Positional[str], seeds: int | None = None, workers: int = 1, claims: Path | None = None,
    trust: bool = False, keep: bool = False,
) -> None:  # fmt: skip
    """Check a paper's central claim at small scale: expected against measured, with intervals and a verdict.

      anypolicy reproduce ngrpo
      anypolicy reproduce vade --seeds 8 --workers 2
      anypolicy reproduce vade --seeds 20 --keep

    Args:
        method: whose claim
        seeds: runs of each arm; default as the claim says
        workers: processes
        claims: folder of claim files, if not that of the checkout
        trust: run a claim of the working directory, though you have not run it before
        keep: the runs that docs/evidence holds stand; add the seeds they lack and judge all anew
    """
    from anypolicy import studies

    print(studies.reproduce(method, seeds=seeds, workers=workers, claims=claims, trust=trust, keep=keep))


def methods(
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False, method_file: tuple[Path, ...] = ()
) -> None:
    """List all methods.

      anypolicy methods
      anypolicy methods --json

    Args:
        json_output: a list of objects, with slug, paper, year, family, changes, composes_with, claim
        method_file: .py files with methods of your own
    """
    from rich.console import Console
    from rich.table import Table

    from anypolicy import catalogue, studies

    catalogue.load_files(method_file)
    entries = studies.listing()
    if json_output:
        print(json_text(entries, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, header_style="bold")
    for column in ("method", "year", "paper", "changes", "idea"):
        table.add_column(column)
    for e in entries:
        table.add_row(e["slug"], str(e["year"]), e["paper"], ", ".join(e["changes"]) or "—", e["idea"])
    Console().print(table)
    print("\nanypolicy show NAME prints a method whole.")


def show(method: Positional[str], method_file: tuple[Path, ...] = ()) -> None:
    """Print a method: card, settings and its whole file.

      anypolicy show ngrpo

    Args:
        method: its name
        method_file: .py files with methods of your own
    """
    from anypolicy import catalogue, studies

    catalogue.load_files(method_file)
    print(studies.show(method))


def explain_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def explain(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
    ) -> None:
        """Say what a run would do, stage by stage, without starting it.

        anypolicy explain ngrpo+vade --task tiny-add
        anypolicy explain sac --task gym/Hopper-v5
        """
        from anypolicy import studies
        from anypolicy.families import control, diffusion

        alone = next(iter(changed(knobs).values()), {})
        if isinstance(settings, control.ControlSettings):
            print(control.explain(control.plan(method, settings, alone)))
            return
        if isinstance(settings, diffusion.DiffusionSettings):
            print(diffusion.explain(diffusion.plan(method, settings, alone)))
            return
        given = settings_dict(settings)
        print(studies.explain(method, task=given.pop("task"), knobs=changed(knobs), **given))

    return explain


def open_page(path: Positional[Path]) -> None:
    """Open the report of a run or comparison in the browser.

      anypolicy open runs/ngrpo-tiny-add-0

    Args:
        path: run or comparison directory
    """
    page = path / "report.html"
    if not isfile(page):
        raise InputError("path", str(path), "it has no report.html: finish the run with `anypolicy resume`")
    webbrowser.open(page.resolve().as_uri())
    print(page)


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 for input that cannot be used, 128 + n where signal n stopped it."""
    args = list(sys.argv[1:] if argv is None else argv)

    def command() -> None:
        known = {name: outlived(own) for name, own in commands(args).items()}
        tyro.extras.subcommand_cli_from_dict(known, prog="anypolicy", description=EXAMPLES, args=args)

    return ended(args[0] if args else "", command)


def outlived(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose end is its own: sys.exit in code that it runs is an error."""

    @functools.wraps(command)
    def run(*given: Any, **named: Any) -> Any:
        with outliving("command"):
            return command(*given, **named)

    return run


def commands(args: list[str]) -> dict[str, Callable[..., Any]]:
    """The commands; those that train get the settings of the methods that the arguments name."""
    plain: dict[str, Callable[..., Any]] = {
        "resume": resume, "eval": evaluate, "reproduce": reproduce, "methods": methods, "show": show, "open": open_page,
        "filtration": filtration, "record": record, "inspect": inspect,
        "revise": revise,
    }  # fmt: skip
    Knobs: type = NoKnobs
    Settings: type = NoKnobs
    own = ("train", "compare", "explain", "scores", "reward-model", "solve", "train-apart", "make-datasets")
    if args and args[0] in own:
        specs: list[str] = []
        for word in args[1:]:
            if word.startswith("-"):
                break
            specs.append(word)
        given = [w.removeprefix("--method-file=") for w in args if w.startswith("--method-file=")]
        files = given + [w for i, w in enumerate(args) if "--method-file" in args[:i] and w.endswith(".py")]
        if not specs and not {"-h", "--help"} & set(args):
            raise InputError(
                "method",
                " ".join(args[1:3]),
                f"name the method first: anypolicy {args[0]} METHOD" + ("" if args[0] == "solve" else " --task …"),
            )
        trains = trained_by(specs, files, args[0])
        Knobs, Settings = knobs_type(specs, trains), settings_type("data" if args[0] == "make-datasets" else trains)
    return {
        "train": train_command(Knobs, Settings),
        "compare": compare_command(Knobs, Settings),
        "explain": explain_command(Knobs, Settings),
        "scores": scores_command(Knobs, Settings),
        "reward-model": reward_model_command(Knobs, Settings),
        "solve": solve_command(Knobs),
        "train-apart": train_apart_command(Knobs, Settings),
        "make-datasets": make_datasets_command(Knobs, Settings),
        **plain,
    }


if __name__ == "__main__":
    sys.exit(main())
