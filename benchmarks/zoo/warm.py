"""Imported once by the process that all others are forked from: what every attempt loads, loaded."""

import contextlib

import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import torch
import torch_pruning  # noqa: F401
from torch import nn

from . import attempts, networks

torch.set_num_threads(1)
with contextlib.suppress(ImportError):
    networks.importable()
    import timm  # noqa: F401
attempts.beside_onnx(nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 8, 8))
