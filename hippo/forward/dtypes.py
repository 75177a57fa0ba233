"""An error message for models whose weights have several dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hippo.errors import HippoError


@contextmanager
def mixed_dtypes_explained(model: nn.Module) -> Iterator[None]:
    """Turn torch's error about two dtypes into a HippoError, if the model has two. This is not checked beforehand: many
    such models run (adapters, packed weights, a vision tower of its own dtype)."""
    try:
        yield
    except RuntimeError as error:
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
        if len(dtypes) < 2 or "type" not in str(error):
            raise
        raise HippoError(
            f"the target's weights are in {' and '.join(dtypes)}, which do not go together here",
            "load it in one, or convert it with .to(dtype)",
        ) from error
