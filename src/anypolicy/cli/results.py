"""Commands about what a run has learnt: talk to it, publish it."""

import shlex
import sys
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from anypolicy.errors import InputError


def push(run: Positional[Path], name: Positional[str], private: bool = False) -> None:
    """Publish what a run has learnt on the Hugging Face hub, with its recipe, its ledger and a model card.

      anypolicy push runs/ngrpo-tiny-add-0 OWNER/NAME

    Log in before with `hf auth login`, or set HF_TOKEN; HF_ENDPOINT names another hub.

    Args:
        run: the run directory, of a run that has ended
        name: OWNER/NAME there
        private: nobody else sees it
    """
    from anypolicy.families import publish

    print(publish.push(run, name, private=private))


def rerun(run: Positional[Path], out: Path | None = None, quiet: bool = False, trust: bool = False) -> None:
    """Train once more by a run's recipe, in a new folder, and say what differs: numbers, versions, the machine.

      anypolicy rerun runs/ngrpo-tiny-add-0

    Args:
        run: the run directory
        out: the new one; default RUN-again
        quiet: no progress
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.studies import rerun as study

    print(study.rerun(run, out=out, quiet=quiet, trust=trust))


def try_method(method: Positional[str]) -> None:
    """Run a method's own example: one whole command that shows it at work in two minutes on two cores.

      anypolicy try ngrpo

    Args:
        method: its name
    """
    from anypolicy import catalogue
    from anypolicy.cli.app import main

    card = catalogue.get(method, None).card
    if not card.example:
        raise InputError("method", method, f"it has no example yet: see `anypolicy show {method}` for its claim")
    for command in card.example.split(" && "):
        print(f"$ {command}", flush=True)
        if ended := main(shlex.split(command)[1:]):
            sys.exit(ended)
    print(f"look at {card.look_at}")


def chat(
    run: Positional[Path],
    system: str = "",
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    device: str | None = None,
    trust: bool = False,
) -> None:
    """Talk to the language model that a run has trained, line by line; an empty line or Ctrl-D ends it.

      anypolicy chat runs/ngrpo-tiny-add-0
      echo "3 + 4 =" | anypolicy chat runs/ngrpo-tiny-add-0

    Args:
        run: the run directory
        system: what stands before the conversation
        max_tokens: most tokens of an answer
        temperature: of sampling; 0 is greedy
        seed: of sampling
        device: auto, cpu, cuda or cuda:N, if not where it was trained
        trust: run code that the run's recipe names, though you have not run it before
    """
    from anypolicy.families.base import load

    opened: Any = load(run, device=device, trust=trust)
    if not hasattr(opened, "generate"):
        raise InputError("run", str(run), "it trained no language model: look at it with `anypolicy eval`")
    said = [{"role": "system", "content": system}] if system else []
    while line := asked():
        said.append({"role": "user", "content": line})
        [answer] = opened.generate(said, max_tokens=max_tokens, temperature=temperature, seed=seed + len(said))
        print(answer, flush=True)
        if answer:
            said.append({"role": "assistant", "content": answer})


def asked() -> str:
    """The next line, where there is one."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
