"""A GPU that is not there: tensors stay in memory of the processor, and their storages say where they would be.

Within `with PretendedDevice() as gpu:` a tensor that was moved to "cuda" answers so when asked for its device; operands on
both sides raise where CUDA would; a processor's generator may not draw on the GPU; `.numpy()` wants the processor. What
would make the host wait, and pointers that code of the processor would follow, are counted by the line that did it. CUDA's
numbers, memory and races cannot be found out so.
"""

from __future__ import annotations

import collections
import traceback
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CPU, GPU = "cpu", "cuda"
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default, aten.set_.source_Storage, aten.set_.source_Tensor}
INDEXED = {
    aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor, aten._unsafe_index_put.default,
}  # fmt: skip
WAITS = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default}
DRAWS = {"multinomial", "bernoulli", "uniform_", "normal_", "exponential_", "random_", "bernoulli_"}
SAID = {
    "is_available": True,
    "device_count": 1,
    "get_device_name": "a pretended GPU",
    "is_current_stream_capturing": False,
}
HOST = {torch.Tensor.numpy, torch.Tensor.__array__}


class WrongDevice(RuntimeError):
    """What CUDA would refuse."""


def where(t):
    """cpu or cuda."""
    return getattr(t.untyped_storage(), "pretended", CPU)


def put(t, device):
    """Say where a tensor's storage is."""
    if isinstance(t, torch.Tensor):
        t.untyped_storage().pretended = device
    return t


def named(device):
    """The side that a device, or a device's name, means."""
    if device is None or str(device) == "meta":
        return None
    return GPU if str(device).startswith(GPU) or isinstance(device, int) else CPU


def line():
    """The line of this library (or of the test) that is at work."""
    frames = [f for f in reversed(traceback.extract_stack()) if not f.filename.endswith("pretended_device.py")]
    own = next((f for f in frames if "/src/anypolicy/" in f.filename), None)
    own = own or next(f for f in frames if "/torch/" not in f.filename)
    return f"{own.filename.split('/src/anypolicy/')[-1]}:{own.lineno}"


class Below(TorchDispatchMode):
    """Every operation, also those of the backward pass."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        wide = {where(t) for t in flat if t.dim() > 0} or {where(t) for t in flat}
        single = {where(t) for t in flat if t.dim() == 0}
        mixed = len(wide) > 1 or (GPU in single and CPU in wide)
        if func in INDEXED:  # a GPU's tensor takes indices of the processor, not the other way round
            own, indices = where(args[0]), {where(t) for t in args[1] if t is not None}
            values = len(args) > 2 and args[2].dim() > 0 and where(args[2]) != own
            mixed, wide = (own == CPU and GPU in indices) or values, {own}
        if mixed and func not in COPIES:
            self.owner.failed(f"{func}: operands on {[where(t) + '[]' * (t.dim() == 0) for t in flat]}")
        out = func(*args, **kwargs)
        if func is aten.copy_.default:
            return out
        if GPU in wide | single and func is aten._local_scalar_dense.default:
            self.owner.waits[line(), "item"] += 1
        if GPU in wide and func in WAITS:
            self.owner.waits[line(), str(func)] += 1
        side = self.owner.ambient if not wide else GPU if GPU in wide else CPU
        if func is aten._to_copy.default:
            side = self.owner.target or where(args[0])

        def tag(t):
            return t if any(t is x for x in flat) or where(t) == side else put(t, side)

        tree_map_only(torch.Tensor, tag, out)
        return out


class Crossing(torch.autograd.Function):
    """A copy to the other side whose gradient comes back."""

    @staticmethod
    def forward(ctx, x, target, owner):
        ctx.source, ctx.owner = where(x), owner
        with owner.copying(target):
            return put(aten._to_copy.default(x), target)

    @staticmethod
    def backward(ctx, g):
        with ctx.owner.copying(ctx.source):
            return put(aten._to_copy.default(g), ctx.source), None, None


class PretendedDevice(TorchFunctionMode):
    """`waits` and `pointers` count lines; the first operation that CUDA would refuse raises WrongDevice."""

    def __init__(self):
        super().__init__()
        self.ambient, self.target = CPU, None
        self.waits, self.pointers = collections.Counter(), collections.Counter()
        self.below = Below(self)

    def __enter__(self):
        super().__enter__()
        self.below.__enter__()
        self.found = {name: getattr(torch.cuda, name) for name in SAID}
        for name, value in SAID.items():
            setattr(torch.cuda, name, lambda *_, value=value: value)
        return self

    def __exit__(self, *error):
        for name, own in self.found.items():
            setattr(torch.cuda, name, own)
        self.below.__exit__(*error)
        return super().__exit__(*error)

    def failed(self, what):
        raise WrongDevice(f"{what}  at {line()}")

    @contextmanager
    def copying(self, target):
        """What is copied meanwhile goes there."""
        self.target = target
        try:
            yield
        finally:
            self.target = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return torch.device(GPU, 0) if where(args[0]) == GPU else func(*args)
        if func in (torch.Tensor.is_cuda.__get__, torch.Tensor.is_cpu.__get__):
            return (where(args[0]) == GPU) == (func == torch.Tensor.is_cuda.__get__)
        if args and isinstance(args[0], torch.Tensor) and where(args[0]) == GPU:
            if func in HOST:
                self.failed("numpy: a tensor of the GPU must be copied to the processor first")
            if func is torch.Tensor.data_ptr:
                self.pointers[line()] += 1
            if func is torch.Tensor.tolist:
                self.waits[line(), "tolist"] += 1
        if func is torch.Tensor.__deepcopy__:
            return put(func(*args, **kwargs), where(args[0]))
        if func in (torch.Tensor.cuda, torch.Tensor.cpu):
            func, args = torch.Tensor.to, (args[0], GPU if func is torch.Tensor.cuda else CPU)
        if func is torch.Tensor.to:
            return self.moved(list(args), kwargs)
        return self.made(func, name, args, kwargs)

    def moved(self, args, kwargs):
        """Tensor.to."""
        x, target = args[0], None
        for i, a in enumerate(args[1:], 1):
            if isinstance(a, torch.Tensor):
                target, args[i] = where(a), a.dtype
            elif isinstance(a, (torch.device, str)):
                target, args[i] = named(a), torch.device(CPU) if named(a) else a
        if named(kwargs.get("device")) is not None:
            target, kwargs["device"] = named(kwargs["device"]), torch.device(CPU)
        if target is None or target == where(x):
            return torch.Tensor.to(*args, **kwargs)
        if x.requires_grad and torch.is_grad_enabled():
            return torch.Tensor.to(Crossing.apply(x, target, self), *args[1:], **kwargs)
        kwargs["copy"] = True
        with self.copying(target):
            return put(torch.Tensor.to(*args, **kwargs), target)

    def made(self, func, name, args, kwargs):
        """All else, where a device or a generator may be given."""
        target = named(kwargs.get("device"))
        if target is None and name == "new_tensor":
            target = where(args[0])
        elif target is not None:
            kwargs["device"] = torch.device(CPU)
        if kwargs.get("generator") is not None:
            own = args and isinstance(args[0], torch.Tensor) and where(args[0]) == GPU and name in DRAWS
            if target == GPU or own or (self.ambient == GPU and target is None):
                self.failed(f"{name}: a generator of the processor cannot draw on the GPU")
        if target is None:
            return func(*args, **kwargs)
        before, self.ambient = self.ambient, target
        try:
            out = func(*args, **kwargs)
        finally:
            self.ambient = before
        return tree_map_only(torch.Tensor, lambda t: put(t, target), out)
