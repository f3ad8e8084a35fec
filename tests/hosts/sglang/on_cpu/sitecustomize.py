"""Put on PYTHONPATH, so that each process, also one that SGLang starts, can import torchvision beside a torch for CPUs.

Its compiled operators do not load there, and it asks for two of them while it is imported.
"""

import sys


class _BeforeTorchvision:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            import torch

            if torch.version.cuda is not None:
                return
            self.operators = torch.library.Library("torchvision", "DEF")
            self.operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].kept = self  # type: ignore[attr-defined]


sys.meta_path.insert(0, _BeforeTorchvision())  # type: ignore[arg-type]
