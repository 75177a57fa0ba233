"""What `model.generate(..., custom_generate=<this repository>)` runs: HIPPO's lossless speculative decoding."""

try:  # transformers would name the package by its module; requirements.txt has its name
    from hippo.custom import generate
except ImportError as error:
    raise ImportError(f"this needs HIPPO ({error}): pip install -U hippo-video") from None

__all__ = ["generate"]
