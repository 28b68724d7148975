"""The section ``distill`` of params.yaml, and its arms: as written, and with every value resolved."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from kdcache.encoder.pooling import Pooling, PoolingChoice, read_pooling
from kdcache.encoder.precision import Dtype
from kdcache.encoder.prompt_init import STARTS
from kdcache.errors import ParamsError, nearest
from kdcache.losses.terms import Ramp, Term, check_terms, describe
from kdcache.params import Count, NonNegativeFloat, PositiveFloat, Range, Seed
from kdcache.students.methods import Method, check_method

STUDENT = "student:"  # before the folder of a student whose prompt another one starts from

Name = tuple[str, int]  # of a student: its arm and seed
TaughtBy = Literal["cached", "all_rows", "member", "shuffled_within_class"]


@dataclass(frozen=True)
class Arm:
    """An arm as params.yaml writes it; ``{}`` learns from the labels only.

    Args:
        method, lr, batch_size, num_virtual_tokens, init, pooling: left out, they are those of the section.
            The references ``lora`` and ``full`` need an ``lr`` of their own.
        late_layers: of ``late_prefix``: how many of the last layers have prompts; left out, half of all.
        steps, epochs: at most one, for a schedule of its own. Left out, the arm takes as many
            steps as the section says, whatever its batch size and rows.
        ce_weight: weight of cross-entropy with the labels; a number or a ramp. With 0 the linear
            probe, where training starts, fits the teacher's probabilities instead of the labels.
        label_smoothing: of cross-entropy. Without another term, it is the control of a teacher
            that knows nothing.
        inter_class: a loss within one instance, over classes.
        inter_instance: a loss on the relations between the instances of a batch.
        feature: a loss on pooled features.
        targets: ``cached``: the cache's own. ``all_rows``: the logits of the teacher trained on
            all rows, in place of cross-fitted ones. ``member``: the student of seed s learns
            from member s of an ensemble only, so that results hold for new teachers too.
            ``shuffled_within_class``: a control, in which each row gets the targets of another
            row of its label.
        unlabelled: whether rows without a label teach too, where ``distill.unlabelled`` says so.
    """

    method: Method | None = None
    lr: PositiveFloat | None = None
    steps: Count | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    num_virtual_tokens: Count | None = None
    late_layers: Count | None = None
    init: str | None = None
    pooling: PoolingChoice | None = None
    ce_weight: NonNegativeFloat | Ramp = 1.0
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    inter_class: Term | None = None
    inter_instance: Term | None = None
    feature: Term | None = None
    targets: TaughtBy = "cached"
    unlabelled: bool = True


@dataclass(frozen=True, kw_only=True)
class DistillParams:
    """Section ``distill``.

    Args:
        method: of arms that name none: ``head`` (the control: a linear probe), ``prefix``,
            ``late_prefix``, ``deep_prompt``, ``prompt``, ``p_tuning``, or the references ``lora`` and
            ``full``.
        num_virtual_tokens: length of the prompt, in tokens.
        init: where prompts start: the backbone's own states of ``separators`` or of ``words`` of
            real text, or ``student:FOLDER``, another student's prompt.
        lr: peak learning rate of the prompts.
        steps: of the optimizer, for every arm. Either this or ``epochs`` is set.
        epochs: the same as passes over all rows that some arm may draw (``train``, and
            ``unlabelled`` if the section says so) in batches of the section's size.
        head_lr: peak learning rate of head and pooler.
        batch_size: rows per step; also the batch within which instances are related.
        max_length: in tokens.
        weight_decay: on head and pooler.
        warmup_fraction: share of the steps that warm up, 0 … 0.9.
        dropout: within the frozen backbone while prompts are trained.
        dtype: of matrix products: ``float32``, or ``tf32`` or ``bfloat16``, faster where the hardware has
            them. With ``bfloat16`` the frozen backbone is held in it; prompts and heads stay float32.
        students_per_pass: how many train in one forward and backward pass; ``auto`` takes 1 on a
            CPU, where stacking gains nothing, and as many as fit on a GPU.
        arms: name → arm.
        seeds: one student each per arm.
        unlabelled: whether arms with a teacher's term learn from the split ``unlabelled`` too,
            where the task has one.
        select: ``last`` step, or the one of the best first metric on ``tune`` among step 0, where
            the head is the linear probe, and ten at equal distances. With ``last``, four are looked at.
        expect: fields of the teacher's identity that a shared cache must have, or its ``digest``.
        log_with: experiment trackers by accelerate's names (tensorboard, wandb, mlflow, dvclive,
            …); each gets one run per student.
        pooling: what heads read of the tokens' states: ``cls``, ``mean``, or ``auto``, which takes
            what the backbone's folder says.
        workers: processes that train students side by side on a CPU, each with its share of ``threads``.
            ``auto`` takes one per thread. Another share of threads gives other bits.
    """

    method: Method
    num_virtual_tokens: Count
    init: str
    lr: PositiveFloat
    steps: Count | None = None
    epochs: Count | None = None
    head_lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    weight_decay: NonNegativeFloat
    warmup_fraction: Annotated[float, Range(0, 0.9)]
    dropout: Annotated[float, Range(0, 0.9)]
    dtype: Dtype
    students_per_pass: Count | Literal["auto"]
    arms: dict[str, Arm]
    seeds: tuple[Seed, ...]
    unlabelled: bool
    select: Literal["last", "tune"]
    expect: dict[str, str | int]
    log_with: tuple[str, ...]
    pooling: PoolingChoice = "auto"
    workers: Count | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            got = "none" if self.steps is None else "both"
            raise ValueError(
                f"distill: exactly one of steps and epochs must be set, got {got}. Set the other to null."
            )

    def require_students(self) -> None:
        """Refuse a grid of none.

        Raises:
            ParamsError: there is no arm, or no seed, or a seed stands twice.
        """
        if not self.arms or not self.seeds:
            raise ParamsError("distill: arms and seeds must each hold at least one entry, got none.")
        if twice := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ParamsError(f"distill.seeds: they must differ, got {twice[0]} twice. Remove one.")

    def side_by_side(self, threads: int) -> tuple[int, int]:
        """Return how many processes share some threads, and how many threads each has."""
        workers = threads if self.workers == "auto" else self.workers
        return workers, max(1, threads // workers)


@dataclass(frozen=True)
class ArmSpec:
    """An arm with every value that applies to its students: what training, logs and cards read.

    Args:
        name: of the arm.
        steps, epochs: one of the two; the other is None.
        terms: family → term of the teacher, without families that the arm leaves out.
        unlabelled: whether rows without a label teach: section and arm say so, there is a term
            of the teacher, and targets are not shuffled, for which rows need labels.

    All other values are those of ``Arm`` and ``DistillParams``.
    """

    name: str
    method: Method
    num_virtual_tokens: int
    init: str
    pooling: Pooling
    lr: float
    steps: int | None
    epochs: int | None
    head_lr: float
    batch_size: int
    max_length: int
    weight_decay: float
    warmup_fraction: float
    dropout: float
    dtype: Dtype
    select: Literal["last", "tune"]
    ce_weight: float | Ramp
    label_smoothing: float
    terms: dict[str, Term]
    targets: TaughtBy
    unlabelled: bool
    late_layers: int | None = None

    def describe(self) -> str:
        """Write the objective in one line, such as ``1 · ce + 0.5 · kl (T = 2)``."""
        parts = [f"{describe(self.ce_weight)} · ce"] if self.ce_weight != 0 else []
        if parts and self.label_smoothing:
            parts[0] += f" (smoothed by {self.label_smoothing:g})"
        for term in self.terms.values():
            scope = "" if term.scope == "batch" else f", {term.scope}"
            parts.append(f"{describe(term.weight)} · {term.name} (T = {describe(term.temperature)}{scope})")
        targets = {
            "cached": "",
            "all_rows": ", targets of the teacher on all rows",
            "member": ", each student by one member of the ensemble",
            "shuffled_within_class": ", targets shuffled within the class",
        }
        only = ", labelled rows only" if self.terms and not self.unlabelled else ""
        return " + ".join(parts) + targets[self.targets] + only

    def as_settings(self) -> dict[str, Any]:
        """Return all values as plain ones, each term under its family."""
        settings = asdict(self)
        return settings | settings.pop("terms")


def resolve_arm(params: DistillParams, name: str, backbone: Path | None = None) -> ArmSpec:
    """Resolve an arm: the section's values where it has none of its own.

    Args:
        params: the section.
        name: of the arm.
        backbone: folder of the backbone, which says what ``pooling: auto`` stands for; cls if left out.

    Raises:
        ModelError: the folder says a pooling that kdcache does not have.
        ParamsError: no such arm, values that cannot work together, or an unknown start.
    """
    if name not in params.arms:
        raise ParamsError(f"distill.arms: unknown arm {name!r}. {nearest(name, params.arms)}")
    arm = params.arms[name]
    if arm.steps is not None and arm.epochs is not None:
        raise ParamsError(
            f"distill.arms.{name}: at most one of steps and epochs must be set, got both. Remove one."
        )
    own = arm if arm.steps or arm.epochs else params
    families = {"inter_class": arm.inter_class, "inter_instance": arm.inter_instance, "feature": arm.feature}
    terms = {family: term for family, term in families.items() if term}
    check_terms(terms, arm.ce_weight, f"distill.arms.{name}")
    init = arm.init or params.init
    if init not in STARTS and not init.startswith(STUDENT):
        raise ParamsError(
            f"distill.arms.{name}.init: it must be separators, words or student:FOLDER, got {init!r}. "
            "Leave it out for distill.init."
        )
    method = arm.method or params.method
    check_method(arm, name, method, params.method, terms)
    choice = arm.pooling or params.pooling
    if choice == "auto":
        choice = read_pooling(backbone) if backbone else "cls"
    return ArmSpec(
        name=name,
        method=method,
        num_virtual_tokens=arm.num_virtual_tokens or params.num_virtual_tokens,
        init=init,
        pooling=choice,
        lr=arm.lr or params.lr,
        steps=own.steps,
        epochs=own.epochs,
        head_lr=params.head_lr,
        batch_size=arm.batch_size or params.batch_size,
        max_length=params.max_length,
        weight_decay=params.weight_decay,
        warmup_fraction=params.warmup_fraction,
        dropout=params.dropout,
        dtype=params.dtype,
        select=params.select,
        ce_weight=arm.ce_weight,
        label_smoothing=arm.label_smoothing,
        terms=terms,
        targets=arm.targets,
        unlabelled=(
            params.unlabelled and arm.unlabelled and bool(terms) and arm.targets != "shuffled_within_class"
        ),
        late_layers=arm.late_layers,
    )
