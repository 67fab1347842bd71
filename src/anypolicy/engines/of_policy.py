"""The engine of this machine that fits a policy."""

from anypolicy.engines.base import Engine
from anypolicy.engines.denoising import DenoisingEngine
from anypolicy.engines.native import NativeEngine
from anypolicy.policies.language.base import Denoises, Policy


def engine_for(policy: Policy) -> Engine:
    """Masks are filled in, all else is written token by token."""
    return DenoisingEngine(policy) if isinstance(policy, Denoises) else NativeEngine(policy)
