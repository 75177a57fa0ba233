"""Compare the methods on one clip: the same tokens, and what each method needed for them."""

from pathlib import Path

import hippo

DEMO = Path(hippo.__file__).parent / "bundled" / "demo.mp4"


def main() -> None:
    with hippo.load("tiny") as llm:
        llm.generate(DEMO, max_new_tokens=8)  # warm up
        expected = llm.generate(DEMO, method="ar", max_new_tokens=64).token_ids
        print("method  seconds  tokens/forward  accepted  kept tokens  same tokens")
        for method in ("ar", "sd", "pearl", "hippo"):
            output = llm.generate(DEMO, method=method, max_new_tokens=64)
            stats = output.stats
            print(
                f"{method:6} {stats.seconds.total:8.2f} {stats.tokens_per_target_forward:15.2f}"
                f" {stats.acceptance_rate:9.0%} {stats.kept_tokens:5} of {stats.video_tokens}"
                f"   {'yes' if output.token_ids == expected else 'no'}"
            )


if __name__ == "__main__":
    main()
