"""Running a text model over its KV cache: prefill, extend by a few tokens, roll back."""

from hippo.forward.cached_model import CachedModel

__all__ = ["CachedModel"]
