"""Running a text model over its KV cache: prefill, extend by a few tokens, roll back."""

from hippo.forward.cached_model import CachedModel, extend_together
from hippo.forward.cuda_graphs import why_not_recorded
from hippo.forward.dtypes import mixed_dtypes_explained
from hippo.forward.fused import fused, why_not_fused
from hippo.forward.likeliest import Repetition, likeliest
from hippo.forward.observe import unobserved

__all__ = [
    "CachedModel",
    "Repetition",
    "extend_together",
    "fused",
    "likeliest",
    "mixed_dtypes_explained",
    "unobserved",
    "why_not_fused",
    "why_not_recorded",
]
