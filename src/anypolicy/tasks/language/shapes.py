"""Shapes: pictures of coloured shapes and what they show, one sentence for each kind of shape.

A picture has one to three kinds (a colour and a shape), each of them one to three times: "two red circles. one blue
square." A sentence is right if it says of a kind in the picture how often it is there. Every fact can be put in two
wordings: the base policy's own, and an expert's ("a pair of crimson discs."), both of which the verifier knows.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import nn

from anypolicy.data.records import Prompt, Tokens
from anypolicy.engines.base import Sampling, ask
from anypolicy.engines.native import NativeEngine
from anypolicy.errors import InputError
from anypolicy.policies.language.base import Policy
from anypolicy.policies.language.vision_lm import MARKER, VisionLM
from anypolicy.runs.seeds import generator, numpy_generator
from anypolicy.tasks.language.base import Revision, Score
from anypolicy.tasks.pretrained import trained_once
from anypolicy.tasks.split import place

Wording = Literal["own", "expert"]
Picture = NDArray[np.uint8]

SIDE, CELL = 32, 8
QUESTION = "What is shown?"
COLOURS = {"red": (220, 50, 50), "green": (50, 190, 70), "blue": (60, 90, 230), "yellow": (230, 210, 60)}
SHAPES = ("circle", "square", "triangle")
COUNTS = {1: "one", 2: "two", 3: "three"}
SYNONYMS = {"one": "a single", "two": "a pair of", "three": "a trio of", "red": "crimson", "green": "emerald",
            "blue": "azure", "yellow": "golden", "circle": "disc", "square": "box", "triangle": "wedge"}  # fmt: skip
MOST, PROBED = 80, 256
RECIPE = 1
STEPS, WARMUP, ROWS = 3000, 50, 32


class Fact(NamedTuple):
    """So many shapes of a kind."""

    number: int
    colour: str
    shape: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


class Scene(NamedTuple):
    """A picture and what it shows."""

    facts: tuple[Fact, ...]
    image: Picture


def worded(fact: Fact, wordings: Sequence[Wording]) -> str:
    """A fact as a sentence, each of its three words in a wording of its own."""
    words = (COUNTS[fact.number], fact.colour, fact.shape)
    count, colour, shape = (w if kind == "own" else SYNONYMS[w] for w, kind in zip(words, wordings, strict=True))
    plural = "" if fact.number == 1 else "es" if shape.endswith("x") else "s"
    return f"{count} {colour} {shape}{plural}."


def sentence(fact: Fact, wording: Wording) -> str:
    """A fact as a sentence of one wording."""
    return worded(fact, (wording,) * 3)


FACTS = [Fact(n, c, s) for n, c, s in product(COUNTS, COLOURS, SHAPES)]
KNOWN: tuple[Wording, ...] = ("own", "expert")
READINGS = {worded(f, w): f for f in FACTS for w in product(KNOWN, repeat=3)}
"""What every sentence says."""


def sentences(text: str) -> list[str]:
    """The sentences of a text; joined they are the text. What stands behind the last period is one too."""
    parts: list[str] = re.findall(r"[^.]*\.|[^.]+$", text)
    if len(parts) > 1 and not parts[-1].strip():
        parts[-2:] = [parts[-2] + parts[-1]]
    return parts


def verdicts(truth: Sequence[Fact], said: Sequence[str]) -> list[bool]:
    """Whether each sentence is right; one that says again what was said rightly before is not."""
    left, out = set(truth), list[bool]()
    for text in said:
        fact = READINGS.get(" ".join(text.split()))
        out.append(fact in left)
        left.discard(fact)  # type: ignore[arg-type]
    return out


def glyph(shape: str) -> NDArray[np.bool_]:
    """7 × 7 pixels."""
    y, x = np.mgrid[:7, :7]
    masks = {
        "circle": (y - 3) ** 2 + (x - 3) ** 2 <= 10,
        "square": np.ones((7, 7), np.bool_),
        "triangle": abs(x - 3) <= y / 2,
    }
    return masks[shape]


GLYPHS = {shape: glyph(shape) for shape in SHAPES}


def draw(rng: np.random.Generator) -> Scene:
    """A random picture: kinds and counts uniform, every shape in a cell of its own on a dark ground."""
    names = list(product(COLOURS, SHAPES))
    chosen = sorted(rng.choice(len(names), int(rng.integers(1, 4)), replace=False).tolist())
    facts = tuple(Fact(int(rng.integers(1, 4)), *names[k]) for k in chosen)
    image = np.full((SIDE, SIDE, 3), rng.integers(0, 40, 3), np.uint8)
    cells = iter(rng.permutation((SIDE // CELL) ** 2).tolist())
    for fact in facts:
        for _ in range(fact.number):
            row, column = divmod(next(cells), SIDE // CELL)
            y, x = (CELL * at + int(rng.integers(CELL - 7 + 1)) for at in (row, column))
            image[y : y + 7, x : x + 7][GLYPHS[fact.shape]] = COLOURS[fact.colour]
    return Scene(facts, image)


def name_of(scene: Scene) -> str:
    """A picture is named after its pixels, which decide on which side of the split it is."""
    return hashlib.sha256(scene.image.tobytes()).hexdigest()[:16]


def drawn(rng: np.random.Generator, n: int, *, held: bool) -> list[Scene]:
    """n pictures of one side of the split; a fifth of all are held out."""
    out: list[Scene] = []
    while len(out) < n:
        scene = draw(rng)
        if (place(name_of(scene)) < 0.2) == held:
            out.append(scene)
    return out


class Shapes:
    """Prompts with a picture each. The reward is the share of right sentences among those that were said or, where
    fewer were said than the picture has kinds, among its kinds; a response is correct if it is all right and complete.

    The references, and what the expert writes (`revise`), are in `wording`. The starting policy is a small model of the
    task's own words. It was trained on captions in its own wording; in a share `noise` of their sentences one attribute
    stands as the most frequent one (one, red, circle), so it says what is not there, and a share `expert` of them is in
    the expert's wording. It is kept in the cache, one for each seed.
    """

    def __init__(
        self, seed: int, *, prompts: int = 2000, heldout: int = 300, wording: Wording = "expert", noise: float = 0.4,
        expert: float = 0.001,
    ):  # fmt: skip
        for field, count in (("prompts", prompts), ("heldout", heldout)):
            if count < 1:
                raise InputError(f"shapes.{field}", count, "use a whole number above 0")
        for field, share in (("noise", noise), ("expert", expert)):
            if not 0 <= share <= 1:
                raise InputError(f"shapes.{field}", share, "use a share in [0, 1]")
        if wording not in KNOWN:
            raise InputError("shapes.wording", wording, "use own or expert", choices=KNOWN)
        self.name, self.max_tokens, self.noise, self.expert = "shapes", MOST, noise, expert
        self.wording: Wording = wording
        self.suggested = {"lr": 3e-4, "prompts": 32}
        rng = numpy_generator(seed, "shapes", "prompts")
        self.train, self.heldout = (
            [self.prompt(scene) for scene in drawn(rng, n, held=held)]
            for n, held in ((prompts, False), (heldout, True))
        )

    def prompt(self, scene: Scene) -> Prompt:
        """A picture, the question, its own caption as the answer, and the reference."""
        answer, reference = (" ".join(sentence(f, w) for f in scene.facts) for w in ("own", self.wording))
        shown = {"images": (scene.image,)}
        asked = ({"role": "user", "content": QUESTION},)
        return Prompt(name_of(scene), asked, media=shown, answer=answer, reference=reference)

    def score(self, prompt: Prompt, response: Tokens, text: str) -> Score:
        truth, said = facts_of(prompt), sentences(text)
        right = sum(verdicts(truth, said))
        return Score(right / max(len(said), len(truth)), right == len(said) == len(truth))

    # --- the expert --------------------------------------------------------------------------------------------------
    def revise(self, prompt: Prompt, response: str) -> list[Revision]:
        """Right sentences as they stand, scored 4. Wrong ones, scored 1, become what they come closest to among what
        nobody said, or are left out where all has been said; what is missing is added at the end."""
        said, truth = sentences(response), facts_of(prompt)
        if not response.strip():
            return []
        right = verdicts(truth, said)
        facts = [READINGS.get(" ".join(s.split())) for s in said]
        done = {f for f, ok in zip(facts, right, strict=True) if ok}
        left = [f for f in truth if f not in done]
        wrong = [i for i, ok in enumerate(right) if not ok]
        meant = closest([facts[i] for i in wrong], left)
        instead = {i: left[k] for i, k in zip(wrong, meant, strict=True) if k is not None}
        out: list[Revision] = []
        for i, (text, ok, fact) in enumerate(zip(said, right, facts, strict=True)):
            rewrite = text if ok else sentence(instead[i], self.wording) if i in instead else ""
            spaced = " " * bool(rewrite and not ok and any(r.rewrite for r in out)) + rewrite
            unread = fact is None or fact in done
            error = "correct" if ok else "language_comprehension_error" if unread else "image_recognition_error"
            out.append(Revision(text, 4 if ok else 1, error, spaced))
        missing = [f for k, f in enumerate(left) if k not in meant]
        for f in missing:
            begin = " " if any(r.rewrite for r in out) else ""
            out.append(Revision("", 4, "correct", begin + sentence(f, self.wording)))
        return out

    # --- the base ----------------------------------------------------------------------------------------------------
    def probe(self, policy: Policy) -> dict[str, float]:
        """On 256 fixed held-out pictures, one caption each at temperature 1: `hallucination`, the share of wrong ones
        among the sentences said; `coverage`, the share of what is shown that was said rightly; `expert`, the share of
        sentences with a word of the expert's."""
        scenes = drawn(numpy_generator(0, "shapes", "probe"), PROBED, held=True)
        prompts = [self.prompt(s) for s in scenes]
        requests = [ask(policy, p) for p in prompts]
        answers = NativeEngine(policy).generate(requests, Sampling(self.max_tokens), generator(0, "shapes", "probe"))
        texts = [sentences(policy.decode(s.answer)) for [(s, _)] in answers]
        right = sum(sum(verdicts(scene.facts, said)) for scene, said in zip(scenes, texts, strict=True))
        total = max(sum(map(len, texts)), 1)
        words = {w for words in SYNONYMS.values() for w in words.split()}
        expert = sum(any(w.rstrip(".") in words for w in s.split()) for said in texts for s in said)
        return {"hallucination": 1 - right / total, "coverage": right / sum(len(s.facts) for s in scenes),
                "expert": expert / total}  # fmt: skip

    def make_policy(self, seed: int) -> Policy:
        """The base of this seed, from the cache or trained now."""
        from anypolicy.policies.language.small_vision import small_vision_lm, word_tokenizer

        policy = small_vision_lm(
            word_tokenizer(vocabulary()), layers=2, width=64, heads=4, context_length=128, image=SIDE, patch=CELL,
            seed=seed,
        )  # fmt: skip
        facts: list[Any] = [RECIPE, seed, self.noise, self.expert, STEPS, ROWS]
        trained_once(policy, "shapes", facts, lambda p: train_base(p, seed, self.noise, self.expert))
        return policy


def facts_of(prompt: Prompt) -> list[Fact]:
    """What the prompt's picture shows, read from its answer."""
    return [READINGS[s.strip()] for s in sentences(prompt.answer)]


def closest(said: Sequence[Fact | None], left: Sequence[Fact]) -> list[int | None]:
    """For every wrong fact the index of the one it stands for: those with the most attributes in common, each once."""
    alike = np.array([[0 if a is None else sum(map(str.__eq__, map(str, a), map(str, b))) for b in left] for a in said])
    rows, columns = linear_sum_assignment(alike.reshape(len(said), len(left)), maximize=True)
    found = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [found.get(i) for i in range(len(said))]


def vocabulary() -> list[str]:
    """All words and marks of questions and captions."""
    texts = [QUESTION, *READINGS]
    return sorted({w for text in texts for w in re.findall(r"\w+|[^\w\s]+", text)})


def spoiled(fact: Fact, noise: float, rng: np.random.Generator) -> Fact:
    """With probability `noise` one attribute, drawn uniformly, stands as the most frequent one."""
    if rng.random() >= noise:
        return fact
    field = int(rng.integers(3))
    return [fact._replace(number=1), fact._replace(colour="red"), fact._replace(shape="circle")][field]


def train_base(policy: VisionLM, seed: int, noise: float, expert: float) -> None:
    """Supervised steps: AdamW, 3e-3 after a linear warm-up, falling linearly to 0, 32 new captions each, loss on the
    caption's tokens and the end. Held-out pictures are never seen."""
    print(f"shapes: training the base policy of seed {seed} (some minutes, kept in the cache)", file=sys.stderr)
    rng = numpy_generator(seed, "shapes", "base")
    optimiser = torch.optim.AdamW(policy.module.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, 1) * (1 - step / STEPS)
    )
    patches, end = (SIDE // CELL) ** 2, policy.stop_ids[0]
    begin = policy.tokenizer.encode(MARKER * patches + QUESTION)
    for _ in range(STEPS):
        scenes = drawn(rng, ROWS, held=False)
        said = [
            " ".join(sentence(spoiled(f, noise, rng), "expert" if rng.random() < expert else "own") for f in s.facts)
            for s in scenes
        ]
        captions = [[*policy.tokenizer.encode(text), end] for text in said]
        wide = max(map(len, captions))
        labels = torch.tensor([c + [-100] * (wide - len(c)) for c in captions])
        tokens = torch.cat([torch.tensor(begin).expand(ROWS, -1), labels.clamp(min=0)], 1)
        pixels = policy.processor.image_processor(images=[s.image for s in scenes], return_tensors="pt")["pixel_values"]
        logits = policy.module(input_ids=tokens[:, :-1], pixel_values=pixels).logits[:, len(begin) - 1 :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
