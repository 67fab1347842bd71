"""The command line. Options are generated from the functions and the settings of the methods themselves."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import tyro

from anypolicy.cli.options import (
    NoKnobs,
    check_settings_of_methods,
    evaluation_type,
    family_named,
    knobs_type,
    settings_type,
)
from anypolicy.cli.results import chat, push, rerun, try_method
from anypolicy.cli.runs import (
    compare_command,
    evaluate_command,
    explain_command,
    open_page,
    record,
    resume,
    train_apart_command,
    train_command,
)
from anypolicy.cli.studies import (
    filtration,
    inspect,
    make_datasets_command,
    methods,
    reproduce,
    revise,
    scores_command,
    show,
    solve_command,
)
from anypolicy.errors import InputError, outliving
from anypolicy.runs.ending import ended
from anypolicy.version import __version__

EXAMPLES = """Any policy learns by any published method.

  anypolicy try grpo
  anypolicy train ngrpo --task reasoning-gym/chain_sum --policy smollm2-135m
  anypolicy train grpo+ngrpo.advantage+sapo.loss+vade.sampler --task my_prompts.jsonl
  anypolicy resume runs/ngrpo-tiny-add-0 | rerun runs/ngrpo-tiny-add-0
  anypolicy train dpo --task preferences.jsonl --policy smollm2-135m
  anypolicy compare grpo ngrpo --task tabular-lock --seeds 5
  anypolicy reproduce ngrpo
  anypolicy train sac --task gym/HalfCheetah-v5 --steps 100000
  anypolicy record runs/sac-gym-HalfCheetah-v5-0 --out demos.safetensors
  anypolicy train seppo --task digits
  anypolicy solve horizon-free-rfe --out solved/rfe
  anypolicy make-datasets dqn --task gym/CartPole-v1 --out cartpole | inspect cartpole
  anypolicy train bradley-terry --pairs preferences.jsonl --policy smollm2-135m --out rm
  anypolicy train pf-ppo --task my_prompts.jsonl --reward-model rm --reward-scale unit
  anypolicy scores pf-ppo --task my_prompts.jsonl --reward-model rm | filtration scores.jsonl
  anypolicy revise --task slots --out revisions.jsonl
  anypolicy chat runs/ngrpo-tiny-add-0 | push runs/ngrpo-tiny-add-0 OWNER/NAME
  anypolicy methods | show ngrpo | explain ngrpo+vade --task tiny-add | eval DIR | open DIR
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 for input that cannot be used, 128 + n where signal n stopped it."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        print(__version__)
        return 0

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
        "resume": resume, "reproduce": reproduce, "methods": methods, "show": show, "open": open_page,
        "filtration": filtration, "record": record, "inspect": inspect,
        "revise": revise, "push": push, "chat": chat, "rerun": rerun, "try": try_method,
    }  # fmt: skip
    Knobs: type = NoKnobs
    Settings: type = NoKnobs
    own = ("train", "compare", "explain", "scores", "solve", "train-apart", "make-datasets")
    if args and args[0] in own:
        specs: list[str] = []
        for word in args[1:]:
            if word.startswith("-"):
                break
            specs.append(word.partition(":")[0] if args[0] == "compare" else word)
        given = [w.removeprefix("--method-file=") for w in args if w.startswith("--method-file=")]
        files = given + [w for i, w in enumerate(args) if "--method-file" in args[:i] and w.endswith(".py")]
        if not specs and not {"-h", "--help"} & set(args):
            raise InputError(
                "method",
                " ".join(args[1:3]),
                f"name the method first: anypolicy {args[0]} METHOD" + ("" if args[0] == "solve" else " --task …"),
            )
        family = family_named(specs, files, args[0])
        Knobs, Settings = knobs_type(specs, family), settings_type(family, args[0])
        check_settings_of_methods(Knobs, args)
    Options = evaluation_type() if args[:1] == ["eval"] else NoKnobs
    return {
        "train": train_command(Knobs, Settings),
        "compare": compare_command(Knobs, Settings),
        "eval": evaluate_command(Options),
        "explain": explain_command(Knobs, Settings),
        "scores": scores_command(Knobs, Settings),
        "solve": solve_command(Knobs),
        "train-apart": train_apart_command(Knobs, Settings),
        "make-datasets": make_datasets_command(Knobs, Settings),
        **plain,
    }


if __name__ == "__main__":
    sys.exit(main())
