"""A tiny language model in the GGUF format, behind the OpenAI-compatible server of llama-cpp-python."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

DIM, LIKELY = 32, 4.0


def write_gguf(path: Path, words: list[str]) -> None:
    """Write a random Llama of one layer, for which the words are the likely next tokens of every text."""
    import gguf

    rng = np.random.default_rng(0)
    pieces = [f"▁{word}" for word in words] + ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(pieces)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(DIM)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * DIM)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(DIM // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    # The first number of each state is large and stays it, so that its weights are those of a bias.
    embedding, output = random(len(tokens), DIM), random(len(tokens), DIM)
    embedding[:, 0], output[:, 0] = 10, -LIKELY
    output[[tokens.index(f"▁{word}") for word in words], 0] = LIKELY
    tensors = {"token_embd": embedding, "output": output, "output_norm": np.ones(DIM, np.float32)}
    into = {"attn_output": random(DIM, DIM), "ffn_down": random(DIM, 2 * DIM)}
    for weights in into.values():
        weights[0] = 0
    layer = {f"attn_{name}": random(DIM, DIM) for name in "qkv"} | into
    layer |= {f"ffn_{name}": random(2 * DIM, DIM) for name in ("gate", "up")}
    layer |= {f"{name}_norm": np.ones(DIM, np.float32) for name in ("attn", "ffn")}
    for name, weights in (tensors | {f"blk.0.{name}": weights for name, weights in layer.items()}).items():
        writer.add_tensor(f"{name}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve a model on this machine while the block runs; give the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--n_ctx", "512", "--n_threads", "1", "--logits_all", "true", "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), *options]
    with model.with_suffix(".log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            with (
                contextlib.suppress(URLError, ConnectionError),
                urlopen(f"http://127.0.0.1:{port}/v1/models"),
            ):
                break
            assert server.poll() is None, model.with_suffix(".log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)
