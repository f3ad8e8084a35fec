"""The plugins' tests run together here; each of them also runs by itself in its own folder."""

from __future__ import annotations

import torch

torch.set_num_threads(1)  # two threads on two busy cores can be many times slower than one

collect_ignore = ["template"]  # tests/test_scaffold.py installs it and runs its tests
