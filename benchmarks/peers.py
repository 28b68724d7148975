"""What users would pick instead, on the same rows and the same backbone: logistic regression and SetFit.

Usage: python benchmarks/peers.py MODEL DATA FOLDER TASK [TASK …]
           [--rates 2e-5 …] [--steps 1500 …] [--caches CACHES]

MODEL is a sentence encoder, DATA a folder that `kdcache prepare` filled. The logistic regression is
scikit-learn's on the encoder's own sentence embeddings, C chosen on tune. SetFit (Tunstall et al., 2022)
tunes all weights of the encoder on pairs of labelled rows, 20 pairs per row; its learning rate and its
greatest number of steps are chosen on tune. Its own head has C = 1, far too little for states of length 1
and many classes, so the head is that one or a regression as above, whichever is better on tune.

CACHES is a folder that `kdcache cache` filled. With it SetFit's distillation trainer runs instead, and is
added to FOLDER/TASK.json: the encoder learns the teacher's cosine similarities of pairs of labelled and
unlabelled rows, the head the teacher's classes of them. The similarities are those of the cached features,
which are a mean over teachers; the classes are those of the seed's own teacher.

The texts of a pair are joined by the tokenizer's separator; a task of choices is left out. Writes
FOLDER/TASK.json: the predicted class of every validation row, and accuracy in percent by seed.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from setfit import DistillationTrainer, SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.reader import load_cache
from kdcache.data.splits import read_split
from kdcache.data.task import Task, read_task
from kdcache.encoder.references import resolve

SEEDS = (0, 1, 2)
RATES = (2e-5, 1e-4)  # the first is SetFit's default
PAIRS_PER_ROW, MOST_STEPS, BATCH_SIZE, MAX_LENGTH = 20, 1500, 16, 128
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
SPLITS = ("train", "tune", "validation")
UNLABELLED = "unlabelled"
REGRESSION, SETFIT, DISTILLED = "logistic regression", "SetFit", "SetFit distilled"  # arms

Rows = dict[str, tuple[list[str], np.ndarray]]


def read_rows(folder: Path, task: Task, separator: str, splits: Sequence[str] = SPLITS) -> Rows:
    """Split → texts and labels; the texts of a pair become one."""
    rows = {}
    for split in splits:
        table = read_split(folder, split, task)
        pairs = zip(table["text"].to_pylist(), table["text_pair"].to_pylist(), strict=True)
        texts = [f"{first} {separator} {second}" if second else first for first, second in pairs]
        rows[split] = texts, np.array(table["label"].to_numpy())
    return rows


def regression(model: str, rows: Rows) -> np.ndarray:
    """Classes that scikit-learn's regression on frozen embeddings predicts."""
    encoder = SentenceTransformer(model)
    encoder.max_seq_length = MAX_LENGTH
    return best_regression(encoder, rows)[1]


def best_regression(encoder: SentenceTransformer, rows: Rows) -> tuple[float, np.ndarray]:
    """Accuracy on tune of the C that is best there, and the classes that it predicts on validation."""
    states = {split: encoder.encode(texts, show_progress_bar=False) for split, (texts, _) in rows.items()}
    tried = []
    for strength in STRENGTHS:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        classifier.fit(states["train"], rows["train"][1])
        tried.append((classifier.score(states["tune"], rows["tune"][1]), classifier))
    on_tune, best = max(tried, key=lambda pair: pair[0])
    return float(on_tune), np.asarray(best.predict(states["validation"]))


class CachedTeacher:
    """A teacher for SetFit's distillation trainer, which asks one for features and classes of texts.

    Args:
        texts: of the rows that teach; one may stand in several rows.
        features: float array of shape (rows, dim).
        classes: int array of shape (rows,).
    """

    has_differentiable_head = False

    def __init__(self, texts: Sequence[str], features: np.ndarray, classes: np.ndarray) -> None:
        self.texts, self.model_body = list(dict.fromkeys(texts)), self
        self._row_of = {text: row for row, text in enumerate(texts)}
        self._features, self._classes = features, classes

    def encode(self, texts: Sequence[str], convert_to_tensor: bool = False) -> np.ndarray:
        """Features of some of the texts."""
        return self._features[[self._row_of[text] for text in texts]]

    def predict(self, texts: Sequence[str], as_numpy: bool = True) -> np.ndarray:
        """Classes of some of the texts."""
        return self._classes[[self._row_of[text] for text in texts]]


def read_teachers(cache: Path, data: Path, task: Task, separator: str) -> list[CachedTeacher]:
    """One teacher per seed, of the rows with labels and without."""
    rows = read_rows(data, task, separator, ("train", UNLABELLED))
    texts = [text for some, _ in rows.values() for text in some]
    aligned = []
    for split in rows:
        keys = read_split(data, split, task).select(["example_id", "content_hash"])
        aligned.append(load_cache(cache, split).align(*(column.to_pylist() for column in keys.columns)))
    cached = CacheRows.joined(aligned)
    features = cached.features.astype(np.float32)
    return [CachedTeacher(texts, features, cached.member(seed).logits.argmax(axis=1)) for seed in SEEDS]


def setfit(
    model: str,
    rows: Rows,
    seed: int,
    rate: float,
    scratch: Path,
    most_steps: int = MOST_STEPS,
    teacher: CachedTeacher | None = None,
) -> tuple[float, np.ndarray]:
    """Accuracy on tune, and classes that SetFit predicts on validation, with the better of two heads.

    With ``teacher`` its distillation trainer learns from the teacher's rows, without their labels.
    """
    texts, labels = (teacher.texts, teacher.predict(teacher.texts)) if teacher else rows["train"]
    student = SetFitModel.from_pretrained(model)
    student.model_body.max_seq_length = MAX_LENGTH
    steps = min(most_steps, 2 * PAIRS_PER_ROW * len(texts) // BATCH_SIZE)
    settings = TrainingArguments(
        output_dir=str(scratch), batch_size=BATCH_SIZE, num_iterations=PAIRS_PER_ROW, max_steps=steps,
        body_learning_rate=rate, seed=seed, report_to="none", save_strategy="no",
    )  # fmt: skip
    if teacher:
        data = Dataset.from_dict({"text": texts})
        trainer = DistillationTrainer(teacher, student, settings, data)
    else:
        data = Dataset.from_dict({"text": texts, "label": labels.tolist()})
        trainer = Trainer(student, settings, data)
    with contextlib.redirect_stdout(sys.stderr):  # the Trainer's log
        trainer.train()
    tune, validation = (np.asarray(student.predict(rows[s][0], as_numpy=True)) for s in SPLITS[1:])
    own = float(np.mean(tune == rows["tune"][1])), validation
    fitted = best_regression(student.model_body, {**rows, "train": (texts, labels)})
    return max(own, fitted, key=lambda pair: pair[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="+", metavar="TASK")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="of SetFit, to try on tune")
    parser.add_argument("--steps", nargs="+", type=int, default=[MOST_STEPS], help="at most, to try on tune")
    parser.add_argument("--caches", type=Path, help="for SetFit's distillation trainer")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = str(resolve(given.model))
    separator = SentenceTransformer(model).tokenizer.sep_token
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.tasks:
        data, target = given.data / name, given.folder / f"{name}.json"
        task = read_task(data, name)
        if task.num_choices > 1:
            print(f"{name}: a task of choices, left out", flush=True)
            continue
        if given.caches and not target.is_file():
            parser.error(
                f"{target}: must be there before SetFit distilled is added. Run without --caches first."
            )
        rows = read_rows(data, task, separator)
        teachers: Sequence[CachedTeacher | None] = [None] * len(SEEDS)
        if given.caches:
            arm, found = DISTILLED, json.loads(target.read_text(encoding="utf-8"))
            teachers = read_teachers(given.caches / name, data, task, separator)
        else:
            arm, found = SETFIT, {REGRESSION: regression(model, rows).tolist(), "chosen": {}, "tune": {}}
        scratch = given.folder / "scratch" / name
        tried = {
            f"{rate:g}, {steps} steps": [
                setfit(model, rows, seed, rate, scratch, steps, teacher)
                for seed, teacher in zip(SEEDS, teachers, strict=True)
            ]
            for rate in given.rates
            for steps in given.steps
        }
        on_tune = {name: [tune for tune, _ in runs] for name, runs in tried.items()}
        best = max(on_tune, key=lambda name: np.mean(on_tune[name]))
        found["chosen"][arm], found["tune"][arm] = best, on_tune
        found[arm] = {seed: classes.tolist() for seed, (_, classes) in zip(SEEDS, tried[best], strict=True)}
        labels = rows["validation"][1]
        scores = [
            100 * float(np.mean(np.array(classes) == labels))
            for classes in (found[REGRESSION], *found[arm].values())
        ]
        found.setdefault("accuracy", {})[arm] = scores[1:]
        target.write_text(json.dumps(found), encoding="utf-8")
        print(
            f"{name}: {REGRESSION} {scores[0]:.1f}, {arm} {np.mean(scores[1:]):.1f} at {best}",
            flush=True,
        )


if __name__ == "__main__":
    main()
