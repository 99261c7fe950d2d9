"""What a measurement ran on, as benchmarks write it beside their figures."""

import platform
from importlib.metadata import version
from pathlib import Path

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
