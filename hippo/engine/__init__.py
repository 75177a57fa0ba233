"""Several requests at once: a scheduler, the steps of all requests together, and the streams that callers read."""

from hippo.engine.engine import Engine
from hippo.engine.scheduler import Job, Scheduler, State
from hippo.engine.stream import Stream, warnings_of
from hippo.engine.together import Together

__all__ = ["Engine", "Job", "Scheduler", "State", "Stream", "Together", "warnings_of"]
