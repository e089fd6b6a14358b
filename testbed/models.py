"""Model files small enough to break things with: random weights, 3,158 tokens.

    python -m testbed.models FILE LAYERS WIDTH

2 layers of 128 are 2 MB and load at once; 16 of 2048 are 1.4 GB and take seconds. Needs `gguf`.

Both generations of runners must get long answers from them. `llama-server` ends an answer at
bytes that are not UTF-8, and Ollama ends one at 30 equal tokens. So there are thousands of words
to choose from, and neither control tokens nor bytes are ever among the likeliest.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import gguf
import numpy as np

from testbed.containers import OLLAMA
from testbed.ollama import Ollama
from testbed.runs import LABELS

HEAD_WIDTH = 32
WORDS = 3000
BYTES = 128
CONTROL = ("<unk>", "<s>", "</s>")
END = CONTROL.index("</s>")
"""The token that ends an answer."""


def write(
    path: Path, layers: int, width: int, context: int = 8192, *, embeds: bool = False
) -> None:
    """Write a llama-architecture model of this shape; `width` is a multiple of 32.

    One that `embeds` is for embeddings only, as Ollama sees it.
    """
    random = np.random.default_rng(seed=0)
    heads, inner = width // HEAD_WIDTH, width * 2
    said = ["▁", *(chr(ord("a") + i) for i in range(26)), *_words()]
    tokens = [*CONTROL, *(f"<0x{i:02X}>" for i in range(BYTES)), *said]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    kinds += [gguf.TokenType.BYTE] * BYTES + [gguf.TokenType.NORMAL] * len(said)

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

    drawn: dict[tuple[int, ...], Any] = {}

    def weights(name: str, *shape: int) -> None:
        if shape not in drawn:  # each layer has the same ones: drawing them takes the longest
            drawn[shape] = (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(
                np.float16
            )
        values = drawn[shape]
        if name == "output.weight":
            values = values.copy()
            values[: -len(said)] = 0  # an answer is text, and as long as was asked for
        writer.add_tensor(name, values)

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


def _words() -> Iterator[str]:
    """Words of two syllables."""
    first, vowels = "bcdfgklmnprstv", "aeiou"
    syllables = itertools.product(first, vowels, first, vowels)
    return ("▁" + "".join(letters) for letters in itertools.islice(syllables, WORDS))


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


def make_volume(engine: docker.DockerClient, volume: str) -> None:
    """Make a volume with models.

    `tiny` loads at once, `big` takes seconds, `vector` only embeds, and `tuned` is `tiny` with
    an adapter, a system prompt and a context length of its own.
    """
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory)
        write(files / "tiny.gguf", 2, 128)
        write(files / "big.gguf", 16, 2048)
        write(files / "vector.gguf", 2, 128, embeds=True)
        write_adapter(files / "adapter.gguf", 2, 128)
        lines = {
            "tiny": ["FROM /models/tiny.gguf"],
            "big": ["FROM /models/big.gguf", "PARAMETER use_mmap false"],
            "vector": ["FROM /models/vector.gguf"],
            "tuned": [
                *("FROM /models/tiny.gguf", "ADAPTER /models/adapter.gguf"),
                *("SYSTEM You are tuned.", "PARAMETER num_ctx 1536"),
            ],
        }
        for name, words in lines.items():
            (files / name).write_text("\n".join(words) + "\n")
        engine.volumes.create(volume, labels=LABELS)
        create(engine, volume, files, lines)


def create(engine: docker.DockerClient, place: str, files: Path, names: Iterable[str]) -> None:
    """Create models from files.

    Args:
        engine: where the Ollama runs that does it.
        place: the volume or directory that gets them.
        files: a directory with a Modelfile of each name; it is mounted as `/models`.
        names: of the models.
    """
    container = engine.containers.run(
        OLLAMA,
        detach=True,
        labels=LABELS,
        volumes={
            place: {"bind": "/root/.ollama", "mode": "rw"},
            str(files): {"bind": "/models", "mode": "ro"},
        },
        healthcheck={"test": ["NONE"]},
    )
    try:
        Ollama(container).wait_listening()
        for name in names:
            done = container.exec_run(["ollama", "create", name, "-f", f"/models/{name}"])
            assert done.exit_code == 0, done.output
    finally:
        container.remove(force=True, v=True)


@contextmanager
def volume_of_models(engine: docker.DockerClient, name: str) -> Iterator[str]:
    """A volume with models, removed at the end."""
    make_volume(engine, name)
    try:
        yield name
    finally:
        engine.volumes.get(name).remove(force=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
