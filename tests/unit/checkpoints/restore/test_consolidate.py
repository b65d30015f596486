"""Whole tensors out of partitions, and rounding, against torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.restore.consolidate import gather_partition, to_bfloat16
from checkpoints.restore.hf_export import Dtype, tell_dtype
from checkpoints.snapshot.zero3_layout import partition_map
from tests.support.zero3_fake import part, random_values

shapes = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=6)


@given(st.lists(shapes, min_size=1, max_size=3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_what_was_cut_is_put_together(groups: list[list[tuple[int, ...]]], world_size: int, seed: int) -> None:
    named = [{f"g{g}.p{i}": shape for i, shape in enumerate(group)} for g, group in enumerate(groups)]
    values = random_values(named, seed)[""]
    flats = [  # group -> rank -> flat, as DeepSpeed lays them out
        [torch.cat([part(values[name], rank, world_size) for name in group]).numpy() for rank in range(world_size)]
        for group in named
    ]
    for partition in partition_map(named, world_size):
        whole = gather_partition(partition, flats[partition.group])
        assert np.array_equal(whole, values[partition.name].numpy())


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_is_torch_s(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    theirs = torch.from_numpy(array.copy()).to(torch.bfloat16)
    ours = torch.from_numpy(to_bfloat16(array).copy()).view(torch.bfloat16)
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    good = ~torch.isnan(theirs)
    assert torch.equal(ours[good].view(torch.int16), theirs[good].view(torch.int16))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_config_tells_the_dtype_of_the_weights_beside_it(tmp_path: Path, dtype: Dtype) -> None:
    """transformers loads weights as the config says, not as they are stored."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"torch_dtype": "float16", "vocab_size": 259}))
    tell_dtype(path, dtype)
    assert json.loads(path.read_text()) == {"vocab_size": 259, "dtype": dtype}
