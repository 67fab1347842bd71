"""The same command loop for both sides: time a call in blocks, measure memory, answer on standard output."""

import json
import resource
import sys
import time


def resident():
    """KiB of memory held now."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def allocated():
    """The most that a GPU has held, in KiB, once all it was asked for is done."""
    import torch

    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1024


def serve(calls, versions, base, device="cpu"):
    """`calls`: name → function without arguments. "name N" runs it N times; "memory" gives the peak and its
    growth over `base` (resident KiB before the first forward pass) in MiB, of a GPU what it has held; others return
    JSON."""
    gpu = str(device).startswith("cuda")
    for line in sys.stdin:
        name, _, n = line.strip().partition(" ")
        if name == "versions":
            answer = versions
        elif name == "memory":
            peak = allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            base = 0 if gpu else base
            answer = {"peak": peak / 1024, "growth": (peak - base) / 1024}
        elif n:
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(int(n)):
                calls[name]()
            if gpu:
                allocated()
            answer = {"cpu": (time.process_time() - cpu) / int(n), "wall": (time.perf_counter() - wall) / int(n)}
        else:
            answer = calls[name]()
        print(json.dumps(answer), flush=True)
