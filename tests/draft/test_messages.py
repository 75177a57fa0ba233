"""What crosses between the processes."""

from multiprocessing import Pipe

import torch

from hippo.draft.messages import Begin, Settle, packed, put, take, unpacked


def test_records_arrive_as_they_were_sent():
    ours, theirs = Pipe()
    inputs = {"pixel_values_videos": torch.randn(3, 4), "input_ids": torch.tensor([[1, 2]]), "note": "x"}
    put(ours, Begin(packed(inputs), 7))
    put(ours, Settle(3, [1, 2]))
    begin, settle = take(theirs), take(theirs)
    back = unpacked(begin.inputs, torch.device("cpu"))
    assert settle == Settle(3, [1, 2]) and begin.limit == 7 and back["note"] == "x"
    assert all(torch.equal(back[key], inputs[key]) for key in ("pixel_values_videos", "input_ids"))
