"""Samples of diffusion models as PNG: a grid of pictures, or points of the plane."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float
from torch import Tensor

PIXELS = 960
"""Width of a grid: small pictures are enlarged by a whole number."""


def grid(images: Float[Tensor, "n channels height width"], columns: int) -> bytes:
    """Pictures in [0, 1], row by row, a white line between them."""
    from PIL import Image

    x = (images.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    x = np.repeat(x, 3, 3) if x.shape[3] == 1 else x
    n, height, width, _ = x.shape
    rows = -(-n // columns)
    scale = max(PIXELS // (columns * (width + 1)), 1)
    sheet = np.full((rows * (height + 1), columns * (width + 1), 3), 255, np.uint8)
    for i, picture in enumerate(x):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    out = io.BytesIO()
    shown = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    shown.save(out, "png")
    return out.getvalue()


def scatter(points: Float[Tensor, "n 2"], real: Float[Tensor, "m 2"]) -> bytes:
    """Samples over held-out preferred points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    for x, colour, label in ((real, "#e69f00", "preferred, held out"), (points, "#0072b2", "samples")):
        axes.scatter(*x.numpy().T, s=4, c=colour, label=label, alpha=0.6, linewidths=0)
    axes.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
    axes.legend(frameon=False)
    out = io.BytesIO()
    picture.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()
