"""What a measurement ran on, as benchmarks write it beside their figures."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def machine(*packages: str) -> dict[str, str | int]:
    """Processor, vector instructions, torch's threads, system, and the versions of Python, torch and `packages`."""
    return {
        "processor": processor(), "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(), "system": platform.system(), "python": platform.python_version(),
        **{package: version(package) for package in ("torch", *packages)},
    }  # fmt: skip


def processor() -> str:
    """The processor's name as Linux tells it, elsewhere as Python does."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def device_of(name: Any) -> torch.device:
    """The device of this name; a one-line ValueError where the machine has no such device."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).to("cpu")
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError, IndexError) as error:
        have = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        have += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f"device={str(name)!r} is not on this machine: give one of {', '.join(have)}") from error
    return device
