"""Fine-tuning of a teacher, fully or with a PEFT adapter, by the transformers Trainer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from kdcache.encoder.adapters import Trained, add_lora, add_prefix, merge_adapter
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import load_classifier
from kdcache.encoder.parts import Classifier, take_apart
from kdcache.encoder.pooling import PoolingChoice, resolve_pooling
from kdcache.encoder.precision import Dtype, choose_attention
from kdcache.errors import ParamsError, TrainingDiverged
from kdcache.params import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Range, Seed
from kdcache.teacher.checkpoints import KeepBest, KeepWhole, TellSteps
from kdcache.teacher.processes import is_main, num_processes, own_settings, process_number, start_alike
from kdcache.teacher.sharding import fsdp_config, full_weights
from kdcache.teacher.trainer import TeacherTrainer

MOST_FOLDS = 127  # a cache has 8 bits for the number of a fold
NO_LABEL = -100  # of a row that adds nothing to a loss

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
        model: model reference (see ``kdcache.encoder.references``).
        epochs: passes over the training rows.
        lr: peak learning rate of AdamW, after a linear warm-up.
        batch_size: rows per step.
        max_length: in tokens. Of a pair that is too long the longer text is cut at its end, or the one that
            the task's ``truncate`` names.
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
        shard_weights: whether each of several processes holds a part of the weights, their gradients and
            the optimizer's states, of one model (FSDP). Else each holds all.
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
    shard_weights: bool = False

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
        if self.folds == 1 or self.folds > MOST_FOLDS:
            problems.append(
                f"train_teacher.folds: it must be 0, for none, or between 2 and {MOST_FOLDS}, "
                f"got {self.folds}."
            )
        if self.shard_weights and self.method != "full":
            problems.append(
                f"train_teacher.shard_weights: it must be false with method {self.method}, which trains few "
                "weights, got true. Set it to false."
            )
        if problems:
            raise ParamsError("\n".join(problems))


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

    Several processes train it together, each on its share of every batch. All of them call this.

    Args:
        folder: the pretrained model.
        encoded: tokenised rows.
        labels: class index per row; rows with −1 must not be among ``indices``.
        indices: the rows to train on.
        num_labels: outputs of the head per sequence; 1 if each class is a sequence of its own.
        params: the settings.
        scratch: folder of the checkpoints, see ``KeepWhole``. An interrupted run resumes from the last.
        score: of a model after each epoch, higher is better. None keeps the last epoch.
        start: called with the pretrained model before anything is added to it or trained, to set its head;
            of several processes, in the first one.

    Returns:
        The model in eval mode on the CPU, with an adapter for method ``prefix``, and its cost: numbers
        of steps and examples. Of several processes, the first one has the model.

    Raises:
        ModelError: the method does not work on this architecture, or the model has too few positions.
        TrainingDiverged: the loss became NaN or infinite.
    """

    def build(start: Callable[[Classifier], object] | None) -> Trained:
        return build_model(folder, encoded.take(indices), num_labels, params, start)

    processes = num_processes()
    model = build(start if is_main() or start is None else _as_it_is)
    start_alike(model)
    steps = params.epochs * math.ceil(len(indices) / params.batch_size)
    checkpoints = KeepWhole(scratch)
    arguments = _arguments(
        params, checkpoints.unfinished, fsdp_config(model) if params.shard_weights else None
    )

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        own = rows[process_number() :: processes]  # none, in a small last batch: then one that does not count
        known = [labels[row] for row in own] or [NO_LABEL]
        return {**encoded.batch(own or rows[:1]), "labels": torch.tensor(known)}

    best = None if score is None else KeepBest(score, steps // params.epochs, scratch)
    trainer = TeacherTrainer(
        model=model,
        args=arguments,
        train_dataset=indices,
        callbacks=[*([best] if best else []), checkpoints, TellSteps(params.epochs * len(indices))],
        data_collator=collate,
        compute_loss_func=_loss(encoded, processes),
    )
    if processes > 1:
        # Else all would drop out the same, or as the next member of an ensemble does.
        torch.manual_seed(params.seed + 1_000_003 * process_number())
    result = trainer.train(resume_from_checkpoint=checkpoints.last())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not all(map(math.isfinite, [*losses, result.training_loss])):
        raise TrainingDiverged(
            f"train_teacher: the loss must stay finite, got {losses[-1]} after "
            f"{trainer.state.global_step} steps. Lower train_teacher.lr (now {params.lr:g})."
        )
    cost = {"steps": steps, "examples": params.epochs * len(indices)}
    trained: Any = trainer.model
    weights = full_weights(trained) if params.shard_weights else {}
    if not is_main():  # the first process soon removes what the others could read here
        return model, cost
    if params.shard_weights:
        model = build(_as_it_is)
        model.load_state_dict(weights)
        vars(model.config).update(vars(trained.config))
    if best:
        best.restore(model)
    model.eval().to("cpu")
    if params.method == "lora":
        model = merge_adapter(model)
    return model, cost


def _arguments(
    params: TrainTeacherParams, output_dir: Path, fsdp: dict[str, Any] | None
) -> TrainingArguments:
    """Say to the Trainer what ``params`` say; ``fsdp`` is of a model whose weights are sharded."""
    shard: Any = fsdp is not None  # transformers' annotation knows its former form only
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=params.epochs,
        learning_rate=params.lr,
        per_device_train_batch_size=params.batch_size // num_processes(),
        weight_decay=params.weight_decay,
        warmup_steps=params.warmup_fraction,
        lr_scheduler_type="linear",
        save_strategy="no",  # ``KeepWhole`` says when
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        seed=params.seed,
        data_seed=params.seed,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=params.dtype == "bfloat16",
        fsdp=shard,
        fsdp_config=fsdp,
        ddp_find_unused_parameters=False,
        ddp_static_graph=True,  # weights that no pass uses are found once
        log_level_replica="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else each GPU in sight gets a batch
    return arguments


def _loss(encoded: Encoded, processes: int) -> Callable[..., torch.Tensor] | None:
    """Return the loss of a batch; None is the model's own."""

    def choice_loss(outputs: Any, labels: torch.Tensor, **_: Any) -> torch.Tensor:
        return cross_entropy(encoded.by_row(outputs.logits), labels)

    def share_of_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        # The trainer counts the rows of all processes.
        return cross_entropy(encoded.by_row(outputs.logits), labels, reduction="sum") / num_items_in_batch

    return share_of_loss if processes > 1 else choice_loss if encoded.num_choices > 1 else None


def _as_it_is(model: Classifier) -> None:
    """Leave a model's head, which another process or the training sets."""


def build_model(
    folder: Path, encoded: Encoded, num_labels: int, params: TrainTeacherParams,
    start: Callable[[Classifier], object] | None = None,
) -> Trained:  # fmt: skip
    """Build the untrained model; only the weights that ``params.method`` trains require a gradient.

    With ``start``, it is built to be trained. Loading then says nothing: it was built before, to be checked.
    """
    pooling = resolve_pooling(params.pooling, folder)
    model = load_classifier(folder, num_labels, params.seed, pooling, quiet=start is not None)
    choose_attention(take_apart(model)[0], params.dtype, params.max_length)
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
