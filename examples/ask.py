"""Ask several questions about a clip that is read once; each answer is printed as it is accepted."""

from pathlib import Path

import hippo

DEMO = Path(hippo.__file__).parent / "bundled" / "demo.mp4"
QUESTIONS = ("Describe the video in detail.", "What does the green ring do?", "What does the red cross do?")


def main() -> None:
    clip = hippo.read_video(DEMO, frames=16)
    with hippo.load("tiny") as llm:
        for question in QUESTIONS:
            print(f"> {question}")
            for piece in llm.stream(clip, question):
                print(piece, end="", flush=True)
            print()


if __name__ == "__main__":
    main()
