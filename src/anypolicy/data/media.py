"""What a prompt shows beside its text, as the tensors that a policy's processor makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Media = dict[str, Tensor]
"""The processor's outputs for one prompt, by name; empty for a prompt of text alone."""


def content(media: Mapping[str, Any]) -> bytes:
    """A digest of names, types, shapes and values; empty where there is nothing."""
    if not media:
        return b""
    digest = hashlib.sha256()
    for name in sorted(media):
        x: Tensor = media[name].detach().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


class Contents:
    """`content`, computed once for each object: the rows of a group share theirs."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Mapping[str, Any], bytes]] = {}

    def __call__(self, media: Mapping[str, Any]) -> bytes:
        if not media:
            return b""
        if id(media) not in self.known:
            self.known[id(media)] = (media, content(media))
        return self.known[id(media)][1]
