"""Commands about runs: train, resume, look, compare."""

import sys
import webbrowser
from collections.abc import Callable, Sequence
from os.path import isfile
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from anypolicy.cli.options import changed, given, settings_dict
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text
from anypolicy.runs.trust import allow, enter_modules
from anypolicy.tasks.arguments import parse

Imports = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="import")]
"""Modules that a user names on a command about a run."""


def bring(imports: tuple[str, ...]) -> None:
    """Import what the user names, which is his word for it."""
    allow({"imports": imports})
    enter_modules(imports)


def finish(family: Any, run: Any, quiet: bool) -> None:
    """Report of a finished run, on the screen and as a page."""
    where = family.page(run)
    if not quiet:
        print(family.summary(run, where))


def train_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def train(
        method: Positional[str],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        quiet: bool = False,
    ) -> None:
        """Train a policy, a controller, a diffusion model or a reward model: what the method is for.

        METHOD is a name or a composition: a+b takes what b changes, a+b.stage takes one stage.

          anypolicy train grpo --task tabular-lock --steps 50
          anypolicy train ngrpo+vade --task reasoning-gym/chain_sum --policy smollm2-135m
          anypolicy train grpo+ngrpo.advantage --task tiny-add --ngrpo.virtual-reward 1.0 --lr 3e-4
          anypolicy train grpo --task prompts.jsonl:verifier=numeric --policy path/to/model --dtype bfloat16
          anypolicy train sac --task gym/Pendulum-v1 --steps 20000
          anypolicy train seppo --task digits
          anypolicy train bradley-terry --pairs preferences.jsonl --policy smollm2-135m --out rm
        """
        from anypolicy.families.base import family_of

        family = family_of(method)
        p = family.plan(method, settings, family.own(method, changed(knobs)))
        finish(family, family.start(p, quiet=quiet), quiet)

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

        of_run, own = settings_dict(settings), next(iter(changed(knobs).values()), {})
        task = of_run.pop("task")
        named = f"apart-{method}-{task}-{of_run['seed']}".replace("/", "-").replace(":", "-")
        out = of_run.pop("out") or Path("runs") / named
        pace = Pace(send_every, publish_every, hertz)
        run = train_apart(
            method, task=task, iterations=iterations, knobs=own, pace=pace, quiet=quiet, out=out, **of_run
        )  # fmt: skip
        print(
            f"{run.steps:,} environment steps, return {run.evaluation['eval/return']:.1f}\nnext: anypolicy eval {out}"
        )

    return train_apart


def resume(
    run: Positional[Path], steps: int | None = None, device: str | None = None, quiet: bool = False,
    imports: Imports = (), trust: bool = False,
) -> None:  # fmt: skip
    """Go on with a run that stopped, to the same numbers as if it had not.

      anypolicy resume runs/ngrpo-tiny-add-0
      anypolicy resume runs/ngrpo-tiny-add-0 --steps 400

    Args:
        run: the run directory
        steps: make the run this long in all
        device: auto, cpu, cuda or cuda:N, if not where it was; the numbers are then the same up to rounding
        quiet: no progress
        imports: a module, or FILE.py, that registers environments of your own; several by repeating it
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.families.base import family_of_run

    bring(imports)
    family = family_of_run(run)
    finish(family, family.resume(run, steps=steps, device=device, quiet=quiet, trust=trust), quiet)


def evaluate_command(Options: type) -> Callable[..., None]:
    def evaluate(
        run: Positional[Path],
        options: Annotated[Options, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        imports: Imports = (),
        trust: bool = False,
    ) -> None:
        """Evaluate a run's newest checkpoint: on held-out prompts or pairs, in fresh episodes, or by samples.

          anypolicy eval runs/ngrpo-tiny-add-0
          anypolicy eval runs/ngrpo-tiny-add-0 --prompts 500 --temperature 1
          anypolicy eval runs/sac-gym-Pendulum-v1-0 --episodes 20 --video pendulum.mp4

        Args:
            run: the run directory
            options: of the run's family
            imports: a module, or FILE.py, that registers environments of your own; several by repeating it
            trust: run code that the run's recipe names, though you have not run it before
        """
        from anypolicy.families import base

        bring(imports)
        print(json_text(base.evaluate(run, trust=trust, **given(options)), indent=2))
        for file in sorted((run / "samples").glob("eval.*")):
            print(f"wrote {file}", file=sys.stderr)

    return evaluate


def record(
    run: Positional[Path], out: str, episodes: int = 20, explore: bool = False, imports: Imports = (),
    trust: bool = False,
) -> None:  # fmt: skip
    """Write what a trained controller does as demonstrations for other methods (--demos).

      anypolicy record runs/sac-gym-Pendulum-v1-0 --episodes 40 --out pendulum.safetensors
      anypolicy record runs/sac-gym-Pendulum-v1-0 --out minari:pendulum/sac-v0

    Args:
        run: the run directory
        out: a .safetensors file, or minari:NAME for a Minari data set
        episodes: how many
        explore: act as while learning instead of as evaluated
        imports: a module, or FILE.py, that registers environments of your own; several by repeating it
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.studies import record as acts

    bring(imports)
    print(f"{acts.record(run, episodes=episodes, out=out, explore=explore, trust=trust)} steps in {out}")


def compare_command(Knobs: type, Settings: type) -> Callable[..., None]:
    def compare(
        methods: Positional[tuple[str, ...]],
        settings: Annotated[Settings, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        knobs: Annotated[Knobs, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        seeds: int = 5,
        vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
        metric: str | None = None,
        workers: int = 1,
        equal_kl: bool = False,
        quiet: bool = False,
    ) -> None:
        """Train methods with the same seeds and judge the difference.

          anypolicy compare grpo ngrpo --task tabular-lock --seeds 5
          anypolicy compare grpo grpo:kl_coef=0.1 --task tabular-lock --vary lr=0.1,0.3
          anypolicy compare grpo sapo gspo --task tiny-add --steps 200 --seeds 8 --workers 2 --metric eval/accuracy

        Args:
            methods: names or compositions, with settings of their own as METHOD:key=value,…
            settings: of every run
            knobs: of the methods
            seeds: runs of each method, with the same seeds in all
            vary: SETTING=VALUE,VALUE,… of the run or of the methods; every method stands with each of the values, and
                with all combinations where several settings are varied
            metric: a name of the evaluation rows, e.g. eval/accuracy or probe/success
            workers: processes; give each run --threads 1 when using several
            equal_kl: judge runs at the largest divergence from the reference that all of them reached
            quiet: no progress
        """
        from anypolicy.studies import compare as study_of

        own = settings_dict(settings)
        if seed := own.pop("seed"):
            raise InputError("seed", seed, "compare uses seeds 0, 1, …: set --seeds N")
        study = study_of.compare(
            list(methods), seeds=seeds, metric=metric, knobs=changed(knobs), workers=workers, quiet=quiet,
            equal_kl=equal_kl, vary=varied(vary), **own,
        )  # fmt: skip
        print(study)

    return compare


def varied(texts: tuple[str, ...]) -> dict[str, Sequence[Any]]:
    """SETTING=VALUE,VALUE,… → {"SETTING": [VALUE, VALUE, …]}."""
    from anypolicy.studies.compare import plain_value

    found: dict[str, Sequence[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name in found or not values:
            raise InputError("vary", text, "write SETTING=VALUE,VALUE,…, each setting once")
        found[name] = [plain_value(parse(f"value={value}", "vary")["value"]) for value in values.split(",")]
    return found


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
        from anypolicy.families.base import family_of

        family = family_of(method)
        print(family.explain(family.plan(method, settings, family.own(method, changed(knobs)))))

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
