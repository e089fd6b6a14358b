"""Write a model file small enough to break things with: random weights, 286 tokens.

    python -m scripts.small_model FILE LAYERS WIDTH

2 layers of 128 are 0.8 MB and load at once; 16 of 2048 are 1.3 GB and take seconds. Needs `gguf`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

HEAD_WIDTH = 32
END = 2
"""The token that ends an answer."""


def write(
    path: Path, layers: int, width: int, context: int = 8192, *, embeds: bool = False
) -> None:
    """Write a llama-architecture model of this shape; `width` is a multiple of 32.

    One that `embeds` is for embeddings only, as Ollama sees it.
    """
    random = np.random.default_rng(seed=0)
    heads, inner = width // HEAD_WIDTH, width * 2
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *letters]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 27

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_vocab_size(len(tokens))
    if embeds:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)

    def weights(name: str, *shape: int) -> None:
        values = random.standard_normal(shape, dtype=np.float32) * 0.02
        if name == "output.weight":
            values[END] = 0  # never among the likeliest: an answer is as long as was asked for
        writer.add_tensor(name, values.astype(np.float16))

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    weights("token_embd.weight", len(tokens), width)
    weights("output.weight", len(tokens), width)
    norm("output_norm.weight")
    for layer in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"blk.{layer}.{part}.weight", width, width)
        weights(f"blk.{layer}.ffn_gate.weight", inner, width)
        weights(f"blk.{layer}.ffn_up.weight", inner, width)
        weights(f"blk.{layer}.ffn_down.weight", width, inner)
        norm(f"blk.{layer}.attn_norm.weight")
        norm(f"blk.{layer}.ffn_norm.weight")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_adapter(path: Path, layers: int, width: int, rank: int = 4) -> None:
    """Write a LoRA adapter for a model of this shape."""
    random = np.random.default_rng(seed=1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(layers):
        name = f"blk.{layer}.attn_q.weight"
        for part in (f"{name}.lora_a", f"{name}.lora_b"):
            shape = (rank, width) if part.endswith("a") else (width, rank)
            writer.add_tensor(part, random.standard_normal(shape, dtype=np.float32) * 0.02)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
