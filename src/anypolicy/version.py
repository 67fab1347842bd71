"""The version of the library, written into evidence and benchmarks."""

__version__ = "0.1.0"
