"""Text that exists on every machine: the source files of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(Dataset[Tensor]):
    """Windows of `context + 1` bytes in the order of the text; neighbours overlap by one byte."""

    def __init__(self, context: int, limit: int = 4_000_000) -> None:
        library = Path(sysconfig.get_paths()["stdlib"])
        text = bytearray()
        for path in sorted(library.glob("*.py")):
            text += path.read_bytes()
            if len(text) >= limit:
                break
        self.text = torch.frombuffer(text[:limit], dtype=torch.uint8)
        self.context = context

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> Tensor:
        start = index * self.context
        return self.text[start : start + self.context + 1].long()
