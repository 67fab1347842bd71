"""Model-written Python runs here and nowhere else: see `run`."""

from anypolicy.sandbox.run import Candidate as Candidate
from anypolicy.sandbox.run import Limits as Limits
from anypolicy.sandbox.run import Program as Program
from anypolicy.sandbox.run import Result as Result
from anypolicy.sandbox.run import run as run
from anypolicy.sandbox.run import run_many as run_many

__all__ = ["Candidate", "Limits", "Program", "Result", "run", "run_many"]
