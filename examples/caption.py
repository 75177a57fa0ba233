"""Describe a clip: python examples/caption.py [CLIP]"""

import sys
from pathlib import Path

import hippo

DEMO = Path(hippo.__file__).parent / "bundled" / "demo.mp4"


def main() -> None:
    clip = sys.argv[1] if len(sys.argv) > 1 else DEMO
    with hippo.load("tiny") as llm:
        output = llm.generate(clip)
    print(output.text)
    print(f"{output.stats.tokens_per_target_forward:.1f} tokens per target forward")


if __name__ == "__main__":
    main()
