"""What several test files need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dit_cache_conformance.tiny.weights import seeded

# Two threads on two busy cores can be many times slower than one; also for who runs pytest by hand.
torch.set_num_threads(1)


@pytest.fixture
def as_in_a_run() -> Iterator[None]:
    """One thread and no gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole text-to-image pipeline, as `from_pretrained` reads it: the demo's parts, untrained."""
    from dit_cache_backends.demo import assembly, autoencoder

    folder = tmp_path_factory.mktemp("painter")
    pipeline = assembly.assemble(seeded(autoencoder.build), seeded(assembly.build_transformer))
    pipeline.save_pretrained(folder)
    return folder
