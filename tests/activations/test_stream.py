"""Batches from anywhere are read in order, once each, and training on them is training on the tensor."""

import pytest
import torch

from vlsae.activations.format import StoreError
from vlsae.activations.reader import ReaderState
from vlsae.activations.stream import StreamActivations
from vlsae.training import train

X = torch.arange(46.0).reshape(23, 2)


def _pieces():
    return iter([X[:5].clone(), X[5:6].clone(), X[6:23].clone().reshape(1, 17, 2)])


@pytest.mark.parametrize("make", [lambda: list(_pieces()), _pieces], ids=["list", "iterator"])
def test_every_row_once_in_order_after_a_look_at_the_start(make):
    stream = StreamActivations(make())
    assert torch.equal(stream.sample(7), X[:7])
    batches = [x for x, _ in stream.shuffled(4)]
    assert torch.equal(torch.cat(batches), X)
    assert [len(x) for x in batches] == [4, 4, 4, 4, 4, 3]


def test_a_pass_goes_on_from_its_state():
    stream = StreamActivations(list(_pieces()))
    states = [state for _, state in stream.shuffled(4)]
    rest = torch.cat([x for x, _ in stream.shuffled(4, states[2])])
    assert torch.equal(rest, X[12:])
    assert list(stream.shuffled(4, states[-1])) == []
    assert states[-1] == ReaderState(position=23)


def test_a_list_is_read_again_and_an_iterator_is_not(tmp_path):
    options = {"n_latents": 4, "k": 1, "steps": 20, "batch_size": 4, "progress": False}
    assert train(list(_pieces()), "topk", **options).metadata["n_tokens_seen"] > 46
    with pytest.raises(StoreError, match="The stream has ended; give a longer one"):
        train(_pieces(), "topk", **options)
    train(_pieces(), "topk", **{**options, "steps": 3}, out=tmp_path)
    with pytest.raises(ValueError, match="a stream read once cannot continue"):
        train(_pieces(), "topk", **{**options, "steps": 3}, out=tmp_path)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "holds no batch"),
        ([torch.zeros(3)], r"Batch 0 of the stream is shape \(3,\)"),
        ([[1, 2]], "Batch 0 of the stream is list"),
        ([torch.zeros(3, 2), torch.zeros(3, 4)], "Batch 1 of the stream has width 4, the first had 2"),
        ([torch.full((2, 2), float("nan"))], "Batch 0 of the stream holds NaN"),
    ],
)
def test_bad_streams(batches, message):
    with pytest.raises(StoreError, match=message):
        list(StreamActivations(batches).shuffled(2))


def test_no_data_at_all():
    with pytest.raises(ValueError, match="Cannot train on int"):
        train(3, "topk")
