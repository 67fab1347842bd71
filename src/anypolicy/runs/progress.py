"""The live line of a run: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from anypolicy.runs.output import lasting_output


class Progress:
    """Shows step, reward, accuracy and the last held-out accuracy of a run."""

    def __init__(self, steps: int, first: int, title: str, *, quiet: bool):
        self.console = Console(stderr=True, quiet=quiet)
        self.steps, self.title = steps, title
        self.every = max(steps // 10, 1)
        self.held = ""
        self.bar = Bar(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task(title, total=steps, completed=first, news="")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(f"{self.title}  {text}", highlight=False)

    def note(self, text: str) -> None:
        """What is going on between steps."""
        self.bar.update(self.task, news=text)

    def stepped(self, row: dict[str, Any], done: int) -> None:
        """A row of the ledger, after which `done` steps are done."""
        if "accuracy" in row:
            news = f"reward {row['reward/mean']:.3f}  correct {row['accuracy']:.2f}{self.held}"
        elif "reward/mean" in row and not any(k.startswith("pairs/") for k in row):
            parts = "".join(f"  {k.removeprefix('reward/')} {v:.3f}" for k, v in row.items() if own_part(k))
            news = f"reward {row['reward/mean']:.3f}{parts}{self.held}"
        elif "episode/return" in row:
            news = f"return {row['episode/return']:.1f}{self.held}"
        elif "pairs/accuracy" in row:
            news = f"margin {row['pairs/margin']:.3f}  correct {row['pairs/accuracy']:.2f}{self.held}"
        else:
            losses = (f"{k} {v:.3f}" for k, v in row.items() if k.startswith("loss/"))
            news = "  ".join(losses) + self.held
        self.bar.update(self.task, completed=done, news=news)
        if not self.console.is_terminal and done // self.every > row["step"] // self.every:
            self.console.print(f"{self.title}  step {done}/{self.steps}  {news}", highlight=False)

    def evaluated(self, row: dict[str, Any]) -> None:
        """A held-out evaluation, kept in sight."""
        if "eval/reward_se" in row and "eval/reward" in row:
            self.held = f"  held-out reward {row['eval/reward']:.3f} ± {row['eval/reward_se']:.3f}"
        elif "eval/accuracy" in row:
            text = f"{row['eval/accuracy']:.3f} [{row['eval/low']:.3f}, {row['eval/high']:.3f}]"
            self.held = f"  held-out {text}"
        elif "eval/return" in row:
            self.held = f"  evaluated {row['eval/return']:.1f} ± {row.get('eval/return_se', float('nan')):.1f}"
        elif "eval/distance" in row:
            self.held = f"  distance {row['eval/distance']:.3f}  preferred {row['eval/preferred']:.2f}"
        elif "eval/error" in row:
            self.held = f"  held-out error {row['eval/error']:.4f}"
        elif "eval/perplexity" in row:
            self.held = f"  held-out perplexity {row['eval/perplexity']:.3f}"
        elif probes := {k: v for k, v in row.items() if k.startswith("probe/")}:
            name, value = next(iter(probes.items()))
            text = f"{value:.4f}"
            self.held = f"  {name.removeprefix('probe/')} {text}"
        else:
            return
        self.console.print(f"{self.title}  step {row['step']}/{self.steps} {self.held.strip()}", highlight=False)


def own_part(name: str) -> bool:
    """Whether a log name is one reward of several."""
    return name.startswith("reward/") and name not in ("reward/mean", "reward/std")


@contextmanager
def counting(total: int, title: str, *, quiet: bool) -> Generator[Callable[[str], None]]:
    """A bar over independent jobs; call what it gives with the name of each one that is done."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
               TextColumn("{task.fields[news]}"), TimeElapsedColumn())  # fmt: skip
    with lasting_output(), Bar(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task, done = bar.add_task(title, total=total, news=""), 0

        def tick(news: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=1, news=news)
            if not console.is_terminal:
                console.print(f"{title}  {done}/{total}  {news}", highlight=False)

        yield tick
