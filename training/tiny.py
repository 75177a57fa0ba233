"""What the bundled pair is made of: tokenizer, processor and the two model shapes, as ordinary transformers objects."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from hippo.bench.world import ask, describe, make_scene
from hippo.bench.world.language import DESCRIBE_PROMPTS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CONTEXT = 32768
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Text layers of the target while it learns to see and speak; it is grown to TARGET_LAYERS afterwards.
SEED_LAYERS, TARGET_LAYERS = 8, 24
_WIDTHS = dict(width=192, heads=6, key_heads=2, inner=512, vision_width=96, vision_layers=3)
SHAPES = {
    "target": dict(_WIDTHS, layers=SEED_LAYERS),
    "draft": dict(_WIDTHS, layers=7, inner=96),
}
# The target's layers, of SEED_LAYERS, that the draft begins with: the one left out is the one it misses least.
DRAFT_FROM = (0, 1, 2, 3, 4, 6, 7)


def make_processor(scenes: int = 4000) -> Qwen2_5_VLProcessor:
    """A processor whose byte-level BPE tokenizer is trained on the world's English, seeds from 1,000,000 on."""
    lines = list(DESCRIBE_PROMPTS) * 50 + ["user\n", "assistant\n", "system\n"] * 50
    for seed in range(1_000_000, 1_000_000 + scenes):
        rng, scene = random.Random(seed), make_scene(seed)
        lines += [describe(scene, rng), *ask(scene, rng), *ask(scene, rng)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=20, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator(lines, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=CONTEXT
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    sides = {"shortest_edge": 56 * 56, "longest_edge": 224 * 224 * 768}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 224 * 224}),
        video_processor=Qwen2VLVideoProcessor(size=sides),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(role: str, processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model of the given role ("target" or "draft"), in float32."""
    shape = SHAPES[role]
    token = processor.tokenizer.convert_tokens_to_ids
    head = shape["width"] // shape["heads"]
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=-(-len(processor.tokenizer) // 64) * 64,
            hidden_size=shape["width"],
            intermediate_size=shape["inner"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["key_heads"],
            max_position_embeddings=CONTEXT,
            rope_parameters={
                "rope_type": "default",
                # M-RoPE gives the width axis the lowest frequencies: at the usual 10,000 a head this small could not
                # tell left from right at all.
                "rope_theta": 10.0,
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        ),
        vision_config=dict(
            depth=shape["vision_layers"],
            hidden_size=shape["vision_width"],
            intermediate_size=3 * shape["vision_width"],
            num_heads=shape["vision_width"] // 32,
            out_hidden_size=shape["width"],
            window_size=224,
            fullatt_block_indexes=[shape["vision_layers"] - 1],
            tokens_per_second=2,
        ),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    _initialise(model, shape["layers"] + shape["vision_layers"])
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    model.generation_config.bos_token_id = None
    return model


def _initialise(model: torch.nn.Module, layers: int) -> None:
    """Weights in proportion to 1/sqrt(fan-in): transformers' fixed 0.02 is far too small at these widths, and such a
    model takes thousands of steps to begin to use its attention."""
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.08)
        elif parameter.ndim >= 2:
            std = parameter[0].numel() ** -0.5
            ends_block = any(end in name for end in ("o_proj", "down_proj", "attn.proj"))
            torch.nn.init.normal_(parameter, std=std * (2 * layers) ** -0.5 if ends_block else std)


def grow(model: Qwen2_5_VLForConditionalGeneration, layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """The same function with more text layers: copies whose output projections are zero follow each layer."""
    config = Qwen2_5_VLConfig.from_dict(model.config.to_dict())
    old = len(model.model.language_model.layers)
    copies = layers // old
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    grown = Qwen2_5_VLForConditionalGeneration(config)
    grown.generation_config = model.generation_config
    grown.model.visual.load_state_dict(model.model.visual.state_dict())
    text, source = grown.model.language_model, model.model.language_model
    text.embed_tokens.load_state_dict(source.embed_tokens.state_dict())
    text.norm.load_state_dict(source.norm.state_dict())
    for index, layer in enumerate(text.layers):
        layer.load_state_dict(source.layers[index // copies].state_dict())
        if index % copies:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return grown


@torch.no_grad()
def thin(
    target: Qwen2_5_VLForConditionalGeneration, draft: Qwen2_5_VLForConditionalGeneration, used: dict[int, torch.Tensor]
) -> None:
    """Begin the draft as the target's DRAFT_FROM layers, each with only as many inner units as the draft has: those
    that matter most.

    used: mean absolute activation of the inner units (inner,) of each of the target's layers.
    """
    draft.model.visual.load_state_dict(target.model.visual.state_dict())
    text, source = draft.model.language_model, target.model.language_model
    text.embed_tokens.load_state_dict(source.embed_tokens.state_dict())
    text.norm.load_state_dict(source.norm.state_dict())
    for layer, index in zip(text.layers, DRAFT_FROM, strict=True):
        state = source.layers[index].state_dict()
        down = state["mlp.down_proj.weight"]
        units = (used[index] * down.norm(dim=0)).topk(layer.mlp.down_proj.in_features).indices.sort().values
        state["mlp.down_proj.weight"] = down[:, units]
        for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
            state[name] = state[name][units]
        layer.load_state_dict(state)


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path) -> None:
    """Write an ordinary transformers checkpoint in bfloat16. The model itself keeps its precision."""
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict=state, max_shard_size="15MB")
    processor.save_pretrained(folder)
