from typing import Any

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from tests.models import qwen2_vl, qwen3_vl
from tests.models.common import text

KINDS_OF_TOKENS = True
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
image, clip = qwen3_vl.image, qwen3_vl.clip


def make(layers: int, vocabulary: int) -> Any:
    config = Qwen3VLMoeConfig(
        text_config=text(layers, vocabulary) | qwen3_vl.TEXT | EXPERTS,
        vision_config=qwen3_vl.VISION,
        **qwen2_vl.TOKENS,
    )
    return qwen3_vl.with_head_norms(Qwen3VLMoeForConditionalGeneration(config))
