"""What the device can do and what it spends: peak arithmetic rate, peak memory, energy."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lorascope.engine.provenance import workers_on_device
from lorascope.engine.warm import Kept, Warm

# Dense bf16 rates of the vendors' data sheets, FLOP/s, without sparsity.
_DATASHEET_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
_PEAK_FLOPS = Kept[float]("peak arithmetic rates")
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def peak_flops(device: str, *, precision: str, warm: Warm) -> tuple[float, str]:
    """(FLOP/s, where the figure is from): the data sheet's dense bf16 rate, or the best of a few matrix products here."""
    if device.startswith("cuda") and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for chip, rate in _DATASHEET_BF16.items():
            if chip in name:
                return rate, f"{name} data sheet, dense bf16"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    measured = warm.keep(_PEAK_FLOPS, (device, precision), lambda: _measured_flops(device, dtype))
    return measured, f"best of 5 matrix products of 1024 x 1024 in {precision} on this device"


def _measured_flops(device: str, dtype: torch.dtype) -> float:
    size = 1024
    a = torch.randn(size, size, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    best = float("inf")
    for _ in range(6):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, a)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronise(device: str) -> None:
    """Waits until the device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


@functools.cache
def side_stream(device: str) -> torch.cuda.Stream:
    """The one CUDA stream of this process beside the default one: for gangs, which follow each other, and for what drift
    does beside its reading. Memory freed on a stream is reused on it alone, and cuBLAS keeps tens of MiB for every stream it
    was ever used on in a thread (PyTorch's notes on CUDA, "cuBLAS workspaces"): with a stream for each gang, a run's peak
    memory would count up to 2 GiB that gangs before it left."""
    return torch.cuda.Stream(device)


def reset_peak_memory(device: str) -> None:
    """Starts a new high-water mark: of the allocator on CUDA, of the process on Linux."""
    gc.collect()  # models hold themselves in circles: what was thrown away must not count
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _return_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _return_freed_memory() -> None:
    """Gives the system back what was freed, where the C library can (glibc): a process would be charged with what steps
    before used."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes(device: str) -> int:
    """Bytes at the high-water mark since `reset_peak_memory`: allocated on CUDA and MPS, resident in the process on CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    if device.startswith("mps"):
        return torch.mps.driver_allocated_memory()
    import psutil

    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


def energy_meter(device: str) -> Callable[[], float] | None:
    """A reading of joules spent so far, or None where the machine does not report it (NVML on CUDA, RAPL on Intel), or
    reports it for several workers together."""
    if workers_on_device() > 1:
        return None
    if device.startswith("cuda"):
        try:
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(torch.device(device).index or 0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # no NVML binding, or a card without the counter: the report says "not reported"
            return None
        return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    try:
        _RAPL.read_text()
    except OSError:
        return None
    return lambda: int(_RAPL.read_text()) / 1e6
