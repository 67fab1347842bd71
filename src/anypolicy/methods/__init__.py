"""All methods, one file each. The package can be called: `anypolicy.methods()` is the catalogue."""

import sys
from types import ModuleType
from typing import Any


class Catalogue(ModuleType):
    """A module that lists what is in it."""

    def __call__(self, family: str | None = None) -> Any:
        """The methods of a family by slug, or all."""
        from anypolicy import catalogue

        return catalogue.methods(family)


sys.modules[__name__].__class__ = Catalogue
