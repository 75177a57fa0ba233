"""HIPPO on Ray: a class for Ray Data, and batch jobs on a cluster. `import ray` in this folder is Ray itself."""

from hippo.ray.captioner import Captioner

__all__ = ["Captioner"]
