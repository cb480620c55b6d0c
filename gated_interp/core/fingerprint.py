"""Which weights a module has, in few letters."""

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module, *, trained: bool = False) -> str:
    """A hash of the weights of ``module``: the frozen ones, or with ``trained`` all of them."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if trained or not parameter.requires_grad:
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
            flat = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
            digest.update(flat.numpy().tobytes())
    return digest.hexdigest()[:16]
