"""The published size tables are those of the training sets."""

import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.torch_format.size_tables import published_size_table


def test_published_tables():
    assert sum(published_size_table("mp-20")) == 27136
    assert len(published_size_table("mp-120")) == 121
    with pytest.raises(CheckpointError, match="no published size table for 'mp-21'"):
        published_size_table("mp-21")
