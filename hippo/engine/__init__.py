"""Several requests at once: a scheduler, the steps of all requests together, and the streams that callers read."""

from hippo.engine.engine import Engine
from hippo.engine.groups import Groups
from hippo.engine.scheduler import Job, Scheduler, State
from hippo.engine.stream import Stream, warnings_of

__all__ = ["Engine", "Groups", "Job", "Scheduler", "State", "Stream", "warnings_of"]
