"""What several test files need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny.weights import seeded

# Two threads on two busy cores can be many times slower than one; also for who runs pytest by hand.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole text-to-image pipeline, as `from_pretrained` reads it: the demo's parts, untrained."""
    from dit_cache_backends.demo import assembly, autoencoder

    folder = tmp_path_factory.mktemp("painter")
    pipeline = assembly.assemble(seeded(autoencoder.build), seeded(assembly.build_transformer))
    pipeline.save_pretrained(folder)
    return folder
