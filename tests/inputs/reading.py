"""CPU time of reading the demo's clip: python -m tests.inputs.reading [turns]."""

import statistics
import sys
import time

from hippo.cli.demo import CLIP
from hippo.reader import Reader
from hippo.request import Request, messages_from


def main(turns=60):
    reader, spent = Reader.load("tiny", cache_memory=0), []
    for _ in range(turns + 1):
        began = time.process_time()
        reader.prepare(Request(messages_from(CLIP, "Describe the video in detail.", None)))
        spent.append(1000 * (time.process_time() - began))
    print(f"first {spent[0]:.0f} ms, then {statistics.median(spent[1:]):.1f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
