"""Fine-tuning of a teacher, fully or with a PEFT adapter, by the transformers Trainer."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from kdcache.encoder.adapters import Trained, add_lora, add_prefix, merge_adapter
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import WEIGHTS, load_classifier
from kdcache.encoder.mean_pooled import MeanPooledClassifier
from kdcache.encoder.parts import Classifier
from kdcache.encoder.pooling import PoolingChoice, resolve_pooling
from kdcache.encoder.precision import Dtype
from kdcache.errors import ParamsError, TrainingDiverged
from kdcache.params import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Range, Seed
from kdcache.project import write_json
from kdcache.teacher.checkpoints import KeepWhole

SAVE_STEPS = 200  # a checkpoint takes three times the bytes of the trained weights

# Of accelerate and its launchers, which the trainer would follow.
LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_", "PARALLELISM_CONFIG_", "TORCHELASTIC_")
LAUNCHER_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

TeacherMethod = Literal["full", "prefix", "lora"]
KEYS_OF: dict[TeacherMethod, tuple[str, ...]] = {
    "full": (),
    "prefix": ("num_virtual_tokens",),
    "lora": ("lora_rank", "lora_alpha"),
}


@dataclass(frozen=True)
class TrainTeacherParams:
    """Section ``train_teacher``.

    Args:
        model: model reference (see ``kdcache.encoder.load``).
        epochs: passes over the training rows.
        lr: peak learning rate of AdamW, after a linear warm-up.
        batch_size: rows per step.
        max_length: in tokens. The longer text of a pair is cut at its end.
        weight_decay: of AdamW.
        warmup_fraction: share of the steps that warm up, 0 … 0.9.
        folds: k ≥ 2 trains k more teachers, each without one fold, so that the cached logits of a
            training row come from a teacher that was not trained on it. 0 trains one teacher.
        select: ``last`` epoch, or the epoch with the best first metric on ``tune``.
        seed: of weights that the model lacks, such as a pooler's, of dropout and the order of rows.
        method: ``full`` trains all weights. ``prefix`` trains prompts, pooler and head, and freezes
            the rest. ``lora`` trains low-rank updates of every linear layer, which are merged into
            the weights at the end.
        num_virtual_tokens: of ``prefix``, length of the prompt, in tokens.
        lora_rank, lora_alpha: of ``lora``, see ``adapters.add_lora``.
        pooling: what the head reads: the state of [CLS], or the mean of the text's states. ``auto`` asks the
            model's folder (see ``kdcache.encoder.pooling``).
        dtype: of matrix products: ``float32``, or ``tf32`` or ``bfloat16`` (under autocast), which are
            faster where the hardware has them.
        ensemble: n ≥ 2 trains n models with seeds seed … seed + n − 1 instead of each teacher. The
            cache holds the mean of their logits, and those of each member.

    Raises:
        ParamsError: a key of the method is missing, or a key of another method is set.
    """

    model: str
    epochs: Count
    lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    weight_decay: NonNegativeFloat
    warmup_fraction: Annotated[float, Range(0, 0.9)]
    folds: NonNegativeInt
    select: Literal["last", "tune"]
    seed: Seed
    method: TeacherMethod = "full"
    num_virtual_tokens: Count | None = None
    lora_rank: Count | None = None
    lora_alpha: Count | None = None
    pooling: PoolingChoice = "auto"
    ensemble: Count = 1
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        problems = []
        for method, keys in KEYS_OF.items():
            for key in keys:
                value = getattr(self, key)
                if method == self.method and value is None:
                    problems.append(f"train_teacher.{key}: it must be set with method {method}.")
                if method != self.method and value is not None:
                    problems.append(
                        f"train_teacher.{key}: it must be null with method {self.method}, got {value}. "
                        f"Remove it, or set train_teacher.method to {method}."
                    )
        if problems:
            raise ParamsError("\n".join(problems))


class _KeepBest(TrainerCallback):
    """Keeps the trained weights of the epoch with the highest score on disk.

    It scores at the last step of an epoch, before the trainer writes a checkpoint there. So every
    epoch before a checkpoint has been scored, and an interrupted run keeps its best epoch.
    """

    def __init__(self, score: Callable[[nn.Module], float], steps_per_epoch: int, folder: Path) -> None:
        self.score, self.steps_per_epoch = score, steps_per_epoch
        self.weights, self.note = folder / "best.safetensors", folder / "best.json"

    def on_step_end(self, args: object, state: TrainerState, control: object, **given: Any) -> None:
        if state.global_step % self.steps_per_epoch == 0:
            score = self.score(given["model"])
            if not self.note.is_file() or score > json.loads(self.note.read_text())["score"]:
                self.weights.parent.mkdir(parents=True, exist_ok=True)
                save_file(_trained(given["model"]), self.weights)
                write_json({"score": score, "step": state.global_step}, self.note)

    def restore(self, model: nn.Module) -> None:
        model.load_state_dict(load_file(self.weights), strict=False)  # frozen weights are not in the file


class _Trainer(Trainer):
    """Its checkpoints of a mean-pooled model hold the trained weights only, as those of an adapter do."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        model = self.model
        super()._save(output_dir, _trained(model) if isinstance(model, MeanPooledClassifier) else state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if isinstance(self.model, MeanPooledClassifier):
            self.model.load_state_dict(load_file(Path(resume_from_checkpoint, WEIGHTS)), strict=False)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def own_settings() -> Iterator[None]:
    """Hide what a shell or a launcher set for accelerate, such as bf16 or several steps per update.

    These would decide the weights without the identity knowing.
    """

    def others() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(LAUNCHER_PREFIXES) or k in LAUNCHER_NAMES}

    hidden = others()
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        for name in others():  # the trainer sets some itself
            del os.environ[name]
        os.environ.update(hidden)


@own_settings()
def fine_tune(
    folder: Path,
    encoded: Encoded,
    labels: list[int],
    indices: list[int],
    num_labels: int,
    params: TrainTeacherParams,
    scratch: Path,
    score: Callable[[nn.Module], float] | None = None,
    start: Callable[[Classifier], object] | None = None,
) -> tuple[Trained, dict[str, int]]:
    """Fine-tune a model on some rows, and keep the last or the best epoch.

    Args:
        folder: the pretrained model.
        encoded: tokenised rows.
        labels: class index per row; rows with −1 must not be among ``indices``.
        indices: the rows to train on.
        num_labels: outputs of the head per sequence; 1 if each class is a sequence of its own.
        params: the settings.
        scratch: folder of the checkpoints, one every ``SAVE_STEPS``. An interrupted run resumes
            from the last.
        score: of a model after each epoch, higher is better. None keeps the last epoch.
        start: called with the pretrained model before anything is added to it or trained, to set its head.

    Returns:
        The model in eval mode on the CPU, with an adapter for method ``prefix``, and its cost: numbers
        of steps and examples.

    Raises:
        ModelError: the method does not work on this architecture, or the model has too few positions.
        TrainingDiverged: the loss became NaN or infinite.
    """
    model = build_model(folder, encoded.take(indices), num_labels, params, start)
    steps = params.epochs * math.ceil(len(indices) / params.batch_size)
    checkpoints = KeepWhole(scratch)
    arguments = TrainingArguments(
        output_dir=str(checkpoints.unfinished),
        num_train_epochs=params.epochs,
        learning_rate=params.lr,
        per_device_train_batch_size=params.batch_size,
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_fraction,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        seed=params.seed,
        data_seed=params.seed,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=params.dtype == "bfloat16",
    )

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        return {**encoded.batch(rows), "labels": torch.tensor([labels[row] for row in rows])}

    def choice_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(encoded.by_row(outputs.logits), labels)

    best = None if score is None else _KeepBest(score, steps // params.epochs, scratch)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=indices,
        callbacks=[best, checkpoints] if best else [checkpoints],
        data_collator=collate,
        compute_loss_func=choice_loss if encoded.num_choices > 1 else None,
    )
    result = trainer.train(resume_from_checkpoint=checkpoints.last())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, [*losses, result.training_loss])):
        raise TrainingDiverged(
            f"train_teacher: the loss must stay finite, got {losses[-1]} after "
            f"{trainer.state.global_step} steps. Lower train_teacher.lr (now {params.lr:g})."
        )
    if best:
        best.restore(model)
    model.eval().to("cpu")
    if params.method == "lora":
        model = merge_adapter(model)
    return model, {"steps": steps, "examples": params.epochs * len(indices)}


def build_model(
    folder: Path, encoded: Encoded, num_labels: int, params: TrainTeacherParams,
    start: Callable[[Classifier], object] | None = None,
) -> Trained:  # fmt: skip
    """Build the untrained model; only the weights that ``params.method`` trains require a gradient.

    With ``start``, it is built to be trained. Loading then says nothing: it was built before, to be checked.
    """
    pooling = resolve_pooling(params.pooling, folder)
    model = load_classifier(folder, num_labels, params.seed, pooling, quiet=start is not None)
    if pooling == "cls" and num_labels > 1:
        # The first step would set it, and a run that goes on after the last step takes none.
        model.config.problem_type = "single_label_classification"
    if params.num_virtual_tokens:
        check_positions(
            model.config, params.max_length, params.num_virtual_tokens, str(folder), "train_teacher"
        )
    if start:
        start(model)
    if params.num_virtual_tokens:
        return add_prefix(model, params.num_virtual_tokens, encoded, params.seed, "train_teacher")
    if params.lora_rank and params.lora_alpha:
        return add_lora(model, params.lora_rank, params.lora_alpha)
    return model
