"""One forward for several requests: each gets the logits that it gets alone, whatever the others read."""

import pytest
import torch

from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, extend_together
from tests.models import FAMILIES, inputs, model

WINDOWS = ([1], [3, 4, 5, 6], [7, 8])


def started(name, may_fuse):
    """Requests with different prompts, and the same ones again."""
    net, both = model(name), ([], [])
    family = family_of(net)
    for requests in both:
        for place in range(len(WINDOWS)):
            asked = inputs(name, seed=place, question=6 + place)
            one = CachedModel.of(family, net, may_fuse)
            with torch.no_grad():
                one.read(family.embed(net, asked), family.prepare_prompt(net.config, asked))
            requests.append(one)
    return both


@pytest.mark.parametrize("may_fuse", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_request_gets_its_own_logits(name, may_fuse):
    alone, together = started(name, may_fuse)
    for _ in range(2):  # again after what the first wrote
        wanted = [one.extend(ids) for one, ids in zip(alone, WINDOWS, strict=True)]
        got = extend_together(list(zip(together, WINDOWS, strict=True)))
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
        for one, other in zip(alone, together, strict=True):
            assert one.length == other.length and one.forwards == other.forwards
            one.rollback(1)
            other.rollback(1)
    assert all(one.joins() for one in together)


def test_a_request_of_fixed_width_keeps_its_own_forward():
    net = model("qwen2_5_vl")
    both = []
    for _ in range(2):
        positions = torch.arange(6).expand(3, -1)
        one = CachedModel.of(family_of(net), net, fixed_width=4)
        one.prefill(Embeds(torch.ones(6, 64)), positions, positions[:, -1] + 1)
        both.append(one)
    assert not any(one.joins() for one in both)
    first, second = extend_together([(both[0], [1, 2]), (both[1], [1])])
    assert torch.equal(first[:1], second)
    assert {(one.width, one.longest) for one in both} == {(2, 2)} and both[0].seconds == both[1].seconds > 0
