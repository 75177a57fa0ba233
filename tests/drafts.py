"""Drafts from perfect to useless."""

import copy

from tests.models import model


def draft(kind, family="qwen2_5_vl"):
    """other: another model. same: the target itself. wrong: never right. padded: more rows in its vocabulary."""
    if kind == "other":
        return model(family, 7, 1)
    if kind == "padded":
        return model(family, 7, 1, 192)
    same = model(family)
    if kind == "same":
        return same
    # The target's least likely token is never its most likely one.
    other = copy.deepcopy(same)
    other.lm_head.weight.data.neg_()
    return other
