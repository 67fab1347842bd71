"""Tasks of diffusion models by name."""

from __future__ import annotations

from collections.abc import Callable
from os.path import isdir
from pathlib import Path

from anypolicy.errors import InputError, check_values
from anypolicy.tasks.arguments import call, parse
from anypolicy.tasks.diffusion.base import PictureTask
from anypolicy.tasks.diffusion.image_folder import image_folder
from anypolicy.tasks.diffusion.ring8 import ring8
from anypolicy.tasks.diffusion.small_images import digits, photos

NAMED: dict[str, Callable[..., PictureTask]] = {"digits": digits, "photos": photos, "ring8": ring8}


def load_pictures(spec: str) -> PictureTask:
    """`digits`, `photos`, `ring8`, or a folder of images with metadata.jsonl. Settings follow a colon."""
    check_values({"task": str}, {"task": spec})
    name, _, arguments = spec.partition(":")
    if name in NAMED:
        return call(NAMED[name], name, (), parse(arguments))
    if not isdir(name):
        allowed = f"a diffusion model learns from {', '.join(NAMED)} or a folder of images with metadata.jsonl"
        raise InputError("task", spec, allowed, choices=NAMED)
    return call(image_folder, "folder", (Path(name),), parse(arguments))
