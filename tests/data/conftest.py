from pathlib import Path

import pytest
import torch


@pytest.fixture
def data_root() -> Path:
    """Real MNIST, binarized MNIST and Frey faces, beside the repository."""
    root = Path(__file__).parents[2] / "../shared/data"
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    return root


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)
