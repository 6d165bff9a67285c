from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fake_model import make_model

from bagpiper.model import Bagpiper


@pytest.fixture
def build_model() -> Callable[..., Bagpiper]:
    return make_model


@pytest.fixture
def model() -> Bagpiper:
    return make_model()


@pytest.fixture
def tone() -> np.ndarray:
    """Half a second at 16 kHz, float32 ``[8000]``."""
    return (0.3 * np.sin(np.arange(8000) * 0.2)).astype(np.float32)
