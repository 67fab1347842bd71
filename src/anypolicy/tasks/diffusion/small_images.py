"""Small real images that come with scikit-learn, and how good generated ones are.

`digits`: 1,797 handwritten digits, 8 × 8 grey. `photos`: 16 × 16 pieces of two colour photographs at half resolution.
Half of each class is preferred: digits with more ink, pieces with sharper detail (mean |Laplacian|). A classifier
trained here on all training images, a perceptron with one hidden layer of 64, judges what a model makes: how often it
sees the class that was asked for, and how far its hidden features are from those of held-out preferred images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anypolicy.errors import InputError
from anypolicy.parts.denoising import frechet
from anypolicy.policies.diffusion.denoisers import DiffusionModel, Label, pretrain
from anypolicy.policies.diffusion.image_models import UNetModel
from anypolicy.runs.progress import counting
from anypolicy.runs.seeds import numpy_generator
from anypolicy.tasks.diffusion.base import PictureTask
from anypolicy.tasks.pretrained import trained_once

Score = Callable[[Tensor], Float[Tensor, " n"]]
UPDATES, BATCH, LR = 1500, 64, 1e-3
"""How the models that learning starts from are trained."""


@dataclass(frozen=True)
class Pictures:
    """Images (n, channels, height, width) in [0, 1] and their classes."""

    images: Tensor
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> tuple[Tensor, list[Label]]:
        return self.images[list(rows)], [self.labels[i] for i in rows]


def ink(images: Tensor) -> Float[Tensor, " n"]:
    """Mean brightness of strokes (1 is ink)."""
    return images.mean((1, 2, 3))


def sharpness(images: Tensor) -> Float[Tensor, " n"]:
    """Mean absolute Laplacian of the grey image."""
    grey = images.mean(1)
    inner = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * inner).abs().mean((1, 2))


class Judge:
    """A classifier of the training images, and the median score of every class."""

    def __init__(self, train: Pictures, heldout: Pictures, score: Score, word: str):
        from sklearn.neural_network import MLPClassifier

        self.score, self.word = score, word
        self.classifier = MLPClassifier((64,), max_iter=300, tol=1e-3, random_state=0)
        self.classifier.fit(train.images.flatten(1).numpy(), train.labels)
        self.medians = medians(train, score)
        self.real = preferred(heldout, self.medians, score)
        self.accuracy = float(np.mean(self.seen(heldout.images) == np.array(heldout.labels)))

    def seen(self, images: Tensor) -> np.ndarray:
        """The class that the classifier sees."""
        return np.asarray(self.classifier.predict(images.flatten(1).numpy()))

    def features(self, images: Tensor) -> Float[Tensor, "n 64"]:
        """The classifier's hidden layer."""
        x, weight, bias = images.flatten(1).numpy(), self.classifier.coefs_[0], self.classifier.intercepts_[0]
        return torch.from_numpy(np.maximum(x @ weight + bias, 0)).float()

    def __call__(self, images: Tensor, labels: Sequence[Label]) -> dict[str, float]:
        asked = torch.tensor([int(x) for x in labels])
        return {
            "eval/recognised": float(np.mean(self.seen(images) == asked.numpy())),
            "eval/preferred": float((self.score(images) > self.medians[asked]).float().mean()),
            "eval/distance": frechet(self.features(images), self.features(self.real.images)),
        }

    def told(self, winners: Pictures) -> str:
        """What the judge is, and what it says of real images."""
        real = self(winners.images, winners.labels)
        return (
            f"a classifier trained here (right on {self.accuracy:.1%} of held-out images); preferred means {self.word} "
            f"than the class's median. Training winners themselves: recognised {real['eval/recognised']:.3f}, distance "
            f"to held-out winners {real['eval/distance']:.3f}"
        )


def medians(p: Pictures, score: Score) -> Float[Tensor, " classes"]:
    """The median score of every class."""
    scores, labels = score(p.images), torch.tensor(p.labels)
    return torch.stack([scores[labels == c].median() for c in range(max(p.labels) + 1)])


def preferred(p: Pictures, middle: Float[Tensor, " classes"], score: Score, *, above: bool = True) -> Pictures:
    """The images that score above (or not above) their class's median."""
    keep = (score(p.images) > middle[torch.tensor(p.labels)]) == above
    return Pictures(p.images[keep], [x for x, k in zip(p.labels, keep.tolist(), strict=True) if k])


def task_of(
    name: str, train: Pictures, heldout: Pictures, score: Score, word: str, widths: tuple[int, ...], winners: int,
    suggested: dict[str, Any],
) -> PictureTask:  # fmt: skip
    """The task of small images whose score decides which are preferred."""
    if winners < 1:
        raise InputError(f"{name}.winners", winners, "use at least 1")
    middle, classes = medians(train, score), max(train.labels) + 1
    best, worst = (preferred(train, middle, score, above=x) for x in (True, False))
    best = Pictures(best.images[:winners], best.labels[:winners])
    others = {c: [i for i, x in enumerate(worst.labels) if x == c] for c in range(classes)}
    pair = [others[c][i % len(others[c])] for i, c in enumerate(best.labels)]
    judge = functools.cache(lambda: Judge(train, heldout, score, word))

    def fresh(seed: int) -> DiffusionModel:
        _, channels, size, _ = train.images.shape
        return UNetModel.fresh(seed, size=size, channels=channels, classes=classes, widths=widths)

    def draw(rng: torch.Generator) -> tuple[Tensor, list[Label]]:
        return train.take(torch.randint(len(train), (BATCH,), generator=rng).tolist())

    def fit(model: DiffusionModel) -> None:
        with counting(10, f"{name}: the model to start from, once", quiet=False) as tick:
            pretrain(model, draw, UPDATES, LR, 0, tick)

    def base() -> DiffusionModel:
        model = fresh(0)
        trained_once(model, name, [UPDATES, BATCH, LR, widths], fit)
        return model

    return PictureTask(
        name, best, Pictures(worst.images[pair], [worst.labels[i] for i in pair]), preferred(heldout, middle, score),
        list(range(classes)), base, fresh, lambda images, labels: judge()(images, labels),
        lambda: judge().told(best), suggested,
    )  # fmt: skip


def needed() -> Any:
    """scikit-learn's data sets, or a clear error."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError("scikit-learn", "not installed", "pip install 'anypolicy[diffusion]'") from error
    return datasets


def digits(*, winners: int = 10_000) -> PictureTask:
    """Handwritten digits; a fifth is held out. `winners`: how many of the preferred images are used at most."""
    found = needed().load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    order, cut = numpy_generator(0, "digits").permutation(len(images)), len(images) // 5
    held, train = (Pictures(images[i], found.target[i].tolist()) for i in (order[:cut], order[cut:]))
    suggested = {"beta": 20.0, "batch": 64, "lr": 1e-4, "warmup": 0}
    return task_of("digits", train, held, ink, "more ink", (16, 32), winners, suggested)


def photos(*, winners: int = 10_000) -> PictureTask:
    """Pieces of a temple roof and of a flower: class 0 and 1. The right quarter of each photograph is held out."""
    train, held = (list[Tensor](), list[int]()), (list[Tensor](), list[int]())
    for label, photo in enumerate(needed().load_sample_images().images):
        half = torch.nn.functional.avg_pool2d(torch.tensor(photo).permute(2, 0, 1).float()[None] / 255, 2)[0]
        edge = half.shape[2] * 3 // 4
        for part, (images, labels) in ((half[:, :, :edge], train), (half[:, :, edge:], held)):
            pieces = part.unfold(1, 16, 4).unfold(2, 16, 4).permute(1, 2, 0, 3, 4).flatten(0, 1)
            images.append(pieces)
            labels += [label] * len(pieces)
    sets = [Pictures(torch.cat(images), labels) for images, labels in (train, held)]
    order = numpy_generator(0, "photos").permutation(len(sets[0]))
    mixed = Pictures(sets[0].images[order], [sets[0].labels[i] for i in order])
    suggested = {"beta": 250.0, "batch": 64, "lr": 1e-4, "warmup": 0}
    return task_of("photos", mixed, sets[1], sharpness, "sharper", (16, 32, 64), winners, suggested)
