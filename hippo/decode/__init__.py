"""Decoding: one loop, one verify rule, one stop rule, and the policies that say how far to draft."""

from hippo.decode.answer import Answer, Rules
from hippo.decode.choice import Choice, Mode
from hippo.decode.costs import LARGEST, UNKNOWN, Costs, in_turns_speed, parallel_speed, plain_speed
from hippo.decode.loop import Check, Pause, Rounds, alone, decode
from hippo.decode.schedule import AutoSchedule, Schedule, ways_of
from hippo.decode.stop import StopRule
from hippo.decode.verify import Verdict, Verifier, logits_processors

__all__ = [
    "LARGEST",
    "UNKNOWN",
    "Answer",
    "AutoSchedule",
    "Check",
    "Choice",
    "Costs",
    "Mode",
    "Pause",
    "Rounds",
    "Rules",
    "Schedule",
    "StopRule",
    "Verdict",
    "Verifier",
    "alone",
    "decode",
    "in_turns_speed",
    "logits_processors",
    "parallel_speed",
    "plain_speed",
    "ways_of",
]
