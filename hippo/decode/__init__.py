"""Decoders: autoregressive, serial and parallel speculative. They share one session, verify rule and stop rule."""

from collections.abc import Callable, Iterator

from hippo.decode.ar import decode_ar
from hippo.decode.gamma import LARGEST, Gamma
from hippo.decode.led import LedSession
from hippo.decode.parallel import decode_parallel
from hippo.decode.sampling import Chooser, Sampling, logits_processors
from hippo.decode.serial import decode_serial
from hippo.decode.session import Session
from hippo.decode.stop import StopRule
from hippo.draft import Drafter
from hippo.errors import HippoError

Decoder = Callable[[Session, Drafter], Iterator[list[int]]]
DECODERS: dict[str, Decoder] = {"ar": decode_ar, "serial": decode_serial, "parallel": decode_parallel}

__all__ = [
    "DECODERS",
    "LARGEST",
    "Chooser",
    "Decoder",
    "Gamma",
    "LedSession",
    "Sampling",
    "Session",
    "StopRule",
    "decoder_named",
    "logits_processors",
]


def decoder_named(name: str) -> Decoder:
    """Look a decoder up. Raises HippoError naming those there are."""
    if name not in DECODERS:
        raise HippoError(f"unknown decoder {name!r}", f"use one of: {', '.join(DECODERS)}")
    return DECODERS[name]
