"""Declares two operators of torchvision before it is imported.

Its release for this torch is made for CUDA: on a CPU build of torch its C++ part does not load, and it then fails to
register shapes for operators that nobody declared. Run by a ``.pth`` file at the start of each process, so it imports
nothing until torchvision is asked for.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []


class _Before(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision" and not _libraries:
            import torch

            _libraries.append(torch.library.Library("torchvision", "DEF"))
            for operator in _OPERATORS:
                _libraries[0].define(operator)


sys.meta_path.insert(0, _Before())
