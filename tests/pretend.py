"""Run a script on a GPU that is not there: python tests/pretend.py LIBRARY SCRIPT ARGUMENT ...

Tensors say that they are on cuda:0 and lie in the CPU's memory. To mix them with the CPU's
fails, as on a GPU. LIBRARY: pretend.cpp, compiled.
"""
import ctypes
import os
import runpy
import sys
from types import SimpleNamespace

library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch
import torch
import torch._dynamo  # which reads what is replaced below
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

library.install()
torch._C._set_only_lift_cpu_tensors(True)
GPU = torch.device("cuda", 0)
MAY_MIX = ("index", "_index", "_unsafe_index", "_fused_adam", "_ctc_loss")  # in some arguments


class OnGPU(torch.Tensor):
    """A tensor on cuda:0; inner: its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        outer = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=GPU)
        outer.inner = inner
        return outer

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new):
        torch.Tensor.data.__set__(self, new)
        self.inner = new.inner

    def tolist(self):
        return self.inner.tolist()


def is_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


def inner(x):
    return x.inner if isinstance(x, OnGPU) else x


def outer(x):
    return OnGPU(x) if isinstance(x, torch.Tensor) and not isinstance(x, OnGPU) else x


def call(func, args, kwargs):
    """Call an operation of torch as if it were on the devices of its arguments."""
    name, device = func._schema.name.split("::")[1], kwargs.get("device")
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    of_cpu = [x for x in tensors if not isinstance(x, OnGPU)]
    if len(of_cpu) == len(tensors) and not is_gpu(device):
        return func(*args, **kwargs)
    if name in ("_use_cudnn_ctc_loss", "_use_miopen_ctc_loss"):
        return False
    if name == "copy_":
        inner(args[0]).copy_(inner(args[1]))
        return args[0]
    moves = name == "_to_copy"
    if any(x.dim() for x in of_cpu) and not moves and not name.startswith(MAY_MIX):
        raise RuntimeError(f"{name}: tensors are on cuda:0 and on the CPU")
    args, given = tree_map(inner, args), args
    kwargs, told = tree_map(inner, kwargs), kwargs
    kwargs.pop("pin_memory", None)
    if moves or is_gpu(device):
        kwargs["device"] = torch.device("cpu")
    found = func(*args, **kwargs)
    if name == "_local_scalar_dense" or moves and device is not None and not is_gpu(device):
        return found
    written = [i for i, each in enumerate(func._schema.arguments)
               if each.alias_info is not None and each.alias_info.is_write]
    if written and "out" in told:
        return told["out"]
    if written and not func._schema.returns:
        return None
    return given[written[0]] if written and name.endswith("_") else tree_map(outer, found)


class Pretend(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def saved(state, file, save=torch.save):
    save(tree_map(inner, state), file)


def loaded(file, map_location=None, load=torch.load, **more):
    state = load(file, map_location="cpu", **more)
    return tree_map(outer, state) if is_gpu(map_location) else state


def as_tensor(data, dtype=None, device=None, make=torch.as_tensor):
    made = data if isinstance(data, OnGPU) else make(data, dtype=dtype)
    return made.to(dtype=dtype, device=device or made.device)


torch.__future__.set_swap_module_params_on_conversion(True)
torch.inference_mode = torch.no_grad
torch.save, torch.load, torch.as_tensor = saved, loaded, as_tensor
torch.Generator = lambda device="cpu", make=torch.Generator: make("cpu")
torch.Tensor.pin_memory = lambda self: self
for name, value in {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_name": "NVIDIA H200", "get_device_capability": (9, 0), "_lazy_init": None,
        "get_device_properties": SimpleNamespace(total_memory=141e9), "set_device": None,
        "manual_seed_all": None, "manual_seed": None, "_is_in_bad_fork": False}.items():
    setattr(torch.cuda, name, lambda *args, value=value: value)
sys.argv[:2] = []
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
with Pretend():
    runpy.run_path(sys.argv[0], run_name="__main__")
