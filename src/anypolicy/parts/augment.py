"""Augmentation of pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from anypolicy.parts.noise import indices


def random_shift(
    pictures: Float[Tensor, "batch channels height width"], by: int, generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Every picture moved by −by … by pixels along each axis, edges repeated (arXiv 2004.13649): all channels of one
    picture alike, every picture anew."""
    n, channels, height, width = pictures.shape
    if not by:
        return pictures
    wide = pad(pictures, (by, by, by, by), mode="replicate")
    here = wide.device
    down, right = indices(2 * by + 1, (2, n, 1), generator, here)
    rows = (down + torch.arange(height, device=here)).view(n, 1, height, 1)
    columns = (right + torch.arange(width, device=here)).view(n, 1, 1, width)
    first, second = torch.arange(n, device=here), torch.arange(channels, device=here)
    return wide[first.view(n, 1, 1, 1), second.view(1, channels, 1, 1), rows, columns]
