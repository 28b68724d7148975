"""An arm: one row of the results table, a method and what teaches it; and the section they stand in."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from kdcache.errors import ParamsError, nearest
from kdcache.losses.terms import Ramp, Term, describe
from kdcache.params import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, Range
from kdcache.students.frozen import Dtype
from kdcache.students.prompts import STARTS

Method = Literal["head", "prefix", "prompt", "p_tuning", "lora", "full"]


@dataclass(frozen=True)
class Arm:
    """A student's recipe as params.yaml writes it; ``{}`` learns from the labels alone.

    Args:
        method: None takes ``distill.method``.
        lr: None takes ``distill.lr``; the references ``lora`` and ``full`` want one of their own.
        epochs: None takes ``distill.epochs``.
        head_start_epochs: None takes ``distill.head_start_epochs``.
        batch_size: None takes ``distill.batch_size``.
        num_virtual_tokens: None takes ``distill.num_virtual_tokens``.
        init: None takes ``distill.init``.
        ce_weight: weight of cross-entropy with the labels; a number or a ramp.
        label_smoothing: of cross-entropy; with no other term, the control of a teacher that
            knows nothing.
        inter_class: a loss within one instance, over classes.
        inter_instance: a loss on the relations between the instances of a batch.
        feature: a loss on pooled features.
        targets: ``cached``; ``plain``, where these are cross-fitted: the logits of the teacher on
            all rows, which saw the training rows; ``member``, where these are an ensemble's: the
            student of seed s learns from member s alone, so that what is said of the seeds holds
            for new teachers too; or ``shuffled_within_class``, the control that gives each row the
            cached targets of another row of its label.
        unlabelled: whether to learn from the split ``unlabelled`` too, where ``distill.unlabelled``
            says so and a teacher's term can.
    """

    method: Method | None = None
    lr: PositiveFloat | None = None
    epochs: Count | None = None
    head_start_epochs: Count | None = None
    batch_size: Count | None = None
    num_virtual_tokens: Count | None = None
    init: str | None = None
    ce_weight: NonNegativeFloat | Ramp = 1.0
    label_smoothing: Annotated[float, Range(0, 1)] = 0.0
    inter_class: Term | None = None
    inter_instance: Term | None = None
    feature: Term | None = None
    targets: Literal["cached", "plain", "member", "shuffled_within_class"] = "cached"
    unlabelled: bool = True

    @property
    def terms(self) -> dict[str, Term | None]:
        """Family → term."""
        families = ("inter_class", "inter_instance", "feature")
        return {family: getattr(self, family) for family in families}

    @property
    def uses_unlabelled(self) -> bool:
        """Whether rows without a label teach: by a teacher's term, on targets of their own."""
        return self.unlabelled and any(self.terms.values()) and self.targets != "shuffled_within_class"

    def describe(self) -> str:
        """The objective in one line.

        >>> Arm(inter_class=Term("kl", 0.5, 2.0)).describe()
        '1 · ce + 0.5 · kl (T = 2)'
        """
        parts = [f"{describe(self.ce_weight)} · ce"] if self.ce_weight != 0 else []
        if parts and self.label_smoothing:
            parts[0] += f" (smoothed by {self.label_smoothing:g})"
        parts += [
            f"{describe(t.weight)} · {t.name} (T = {describe(t.temperature)}"
            + ("" if t.scope == "batch" else f", {t.scope}") + ")"
            for t in self.terms.values() if t
        ]  # fmt: skip
        notes = {
            "cached": "",
            "plain": ", plain targets",
            "member": ", each student by one member of the ensemble",
            "shuffled_within_class": ", targets shuffled within the class",
        }
        alone = "" if self.unlabelled else ", labelled rows alone"
        return " + ".join(parts) + notes[self.targets] + alone


@dataclass(frozen=True)
class DistillParams:
    """Section ``distill``.

    Args:
        method: of arms that name none: ``head`` (the control without prompts), ``prefix``,
            ``prompt``, ``p_tuning``, or the references ``lora`` and ``full``.
        num_virtual_tokens: length of the prompt, in tokens.
        init: where prompts start: the backbone's own ``separators`` or ``words`` of real text, or
            ``student:FOLDER``, another student's prompt.
        lr: peak learning rate of the prompts.
        epochs: passes over the training rows with prompts.
        head_start_lr: peak learning rate of head and pooler alone, before the prompts.
        head_start_epochs: passes of that phase; all of the training of method ``head``.
        head_lr: peak learning rate of head and pooler beside the prompts.
        batch_size: rows per step; also the batch within which instances are related.
        max_length: in tokens.
        weight_decay: on head and pooler.
        warmup_fraction: share of the steps that warm up, 0 … 0.9.
        dropout: within the frozen backbone while prompts are trained.
        dtype: ``bfloat16`` trains under autocast, faster on hardware that has it.
        students_per_pass: how many train in one forward and backward; ``auto`` takes 1 on a
            CPU, where stacking gains nothing, and as many as fit on a GPU.
        arms: name → arm.
        seeds: one student each per arm.
        unlabelled: whether arms with a teacher's term learn from the split ``unlabelled`` too,
            where the task has one.
        select: ``last`` epoch, or the one with the best first metric on ``tune``, the end of
            the head start included.
        expect: fields of the teacher's identity that a shared cache must have.
        log_with: experiment trackers by accelerate's names (tensorboard, wandb, mlflow, dvclive,
            …), each of which gets one run per student.
    """

    method: Method
    num_virtual_tokens: Count
    init: str
    lr: PositiveFloat
    epochs: Count
    head_start_lr: PositiveFloat
    head_start_epochs: Count
    head_lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    weight_decay: NonNegativeFloat
    warmup_fraction: Annotated[float, Range(0, 0.9)]
    dropout: Annotated[float, Range(0, 0.9)]
    dtype: Dtype
    students_per_pass: Count | Literal["auto"]
    arms: dict[str, Arm]
    seeds: tuple[NonNegativeInt, ...]
    unlabelled: bool
    select: Literal["last", "tune"]
    expect: dict[str, str | int]
    log_with: tuple[str, ...]

    def arm(self, name: str) -> Arm:
        """An arm, with the section's values where it names none.

        Raises:
            ParamsError: no such arm.
        """
        if name not in self.arms:
            raise ParamsError(f"distill.arms: it must hold the arm, got {name!r}. {nearest(name, self.arms)}")
        arm = self.arms[name]
        own = ("method", "lr", "epochs", "head_start_epochs", "batch_size", "num_virtual_tokens", "init")
        arm = replace(arm, **{key: getattr(self, key) for key in own if getattr(arm, key) is None})
        if arm.init not in STARTS and not str(arm.init).startswith("student:"):
            raise ParamsError(
                f"distill.arms.{name}.init: it must be separators, words or student:FOLDER, got "
                f"{arm.init!r}. Leave it out for distill.init."
            )
        return arm
