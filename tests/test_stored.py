"""Where tensors of a file go, and the look at their values."""

import pytest
import torch

from vlsae.stored import ALIGNED, all_finite, memory


def test_memory_begins_where_torchs_own_does():
    for size in (1, 63, 64, 4097, 2**23):
        taken = memory(size)
        assert taken.nbytes == size and taken.ctypes.data % ALIGNED == 0 and taken.flags.writeable
    assert memory(0).nbytes == 0
    assert all(torch.empty(n).data_ptr() % ALIGNED == 0 for n in (1, 7, 1000))  # what ALIGNED says of torch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_found_wherever_they_stand(dtype):
    for bad in (float("nan"), float("inf"), float("-inf")):
        for at in (0, 17, 998):
            values = torch.ones(999, dtype=dtype)
            assert all_finite(values)
            values[at] = bad
            assert not all_finite(values)
    assert not all_finite(torch.tensor([float("inf"), float("-inf")], dtype=dtype))  # whose sum is NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_whose_sum_is_not_finite_are(dtype):
    assert all_finite(torch.full((3, 100), torch.finfo(dtype).max, dtype=dtype).T)


def test_whole_numbers_and_nothing_are_finite():
    assert all_finite(torch.tensor([True, False])) and all_finite(torch.empty(0)) and all_finite(torch.tensor(2**62))
