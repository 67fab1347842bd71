"""Commands about methods, data and claims."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from anypolicy.cli.options import changed
from anypolicy.errors import InputError
from anypolicy.runs.strict_json import json_text


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
    from anypolicy.studies import reproduce as claims_of

    print(claims_of.reproduce(method, seeds=seeds, workers=workers, claims=claims, trust=trust, keep=keep))


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

    from anypolicy import catalogue
    from anypolicy.studies import show as shown

    catalogue.load_files(method_file)
    entries = shown.listing()
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
    from anypolicy import catalogue
    from anypolicy.studies import show as shown

    catalogue.load_files(method_file)
    print(shown.show(method))
