"""The golden files, opened once a module."""

import pytest

from tests.parity.golden import Golden


@pytest.fixture(scope="module")
def golden(shared_dir):
    return Golden.open(shared_dir / "golden")
