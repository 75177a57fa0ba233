"""Use models that you have loaded yourself, as transformers loads them."""

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

import hippo

BUNDLED = Path(hippo.__file__).parent / "bundled"


def main() -> None:
    target = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny" / "target", dtype="float32").eval()
    draft = AutoModelForImageTextToText.from_pretrained(BUNDLED / "tiny" / "draft", dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(BUNDLED / "tiny" / "target")

    video = hippo.read_video(BUNDLED / "demo.mp4", frames=16)
    content = [{"type": "video"}, {"type": "text", "text": "Describe the video in detail."}]
    chat = [{"role": "user", "content": content}]
    inputs = processor(
        text=[processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)],
        videos=[video.frames],
        video_metadata=[video.metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    output = hippo.generate(target, draft, inputs, tokenizer=processor.tokenizer, max_new_tokens=64)
    print(output.text)

    expected = target.generate(**inputs, do_sample=False, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
    print("identical to generate():", output.token_ids == expected.tolist())


if __name__ == "__main__":
    main()
