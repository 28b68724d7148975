"""Trackers: one run per student, through accelerate; what DVC tracks knows nothing of them."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from typer.testing import CliRunner

from kdcache.cli import app
from kdcache.errors import ParamsError
from kdcache.students.trackers import check_trackers, track

HISTORY = [{"step": 0, "loss_ce": 0.7}, {"step": 1, "loss_ce": 0.5, "tune_accuracy": 0.75}]


class ListTracker(tracking.GeneralTracker):
    """A tracker of one's own, registered as accelerate has it: all that it is told, in a list."""

    name = "list"
    requires_logging_directory = False
    heard: ClassVar[list[tuple[Any, ...]]] = []
    open_runs: ClassVar[set[str]] = set()

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name = run_name

    @property
    def tracker(self):
        return self.heard

    def start(self):
        assert not self.open_runs, "one open run per process, as MLflow has it"
        self.open_runs.add(self.run_name)

    def store_init_configuration(self, values):
        self.heard.append((self.run_name, "settings", values))

    def log(self, values, step=None, **_options):
        if values.get("loss_ce") == 404.0:
            raise ConnectionError("no server")
        self.heard.append((self.run_name, step, values))

    def finish(self):
        self.open_runs.remove(self.run_name)


@pytest.fixture
def heard(monkeypatch) -> list[tuple[Any, ...]]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "list", ListTracker)
    ListTracker.heard.clear()
    ListTracker.open_runs.clear()
    return ListTracker.heard


def test_a_run_is_its_settings_and_one_entry_per_look(heard, tmp_path):
    settings = {"lr": 0.1, "inter_class": {"name": "kl"}, "feature": None, "weight": (1, 2)}
    track(["list"], tmp_path, "wic/kl-0", settings, HISTORY)
    assert heard == [
        ("wic/kl-0", "settings", {"lr": 0.1, "inter_class.name": "kl", "weight": "(1, 2)"}),
        ("wic/kl-0", 0, {"loss_ce": 0.7}),
        ("wic/kl-0", 1, {"loss_ce": 0.5, "tune_accuracy": 0.75}),
    ]
    assert not ListTracker.open_runs


def test_a_tracker_that_fails_is_named_and_stops_nothing(heard, tmp_path, capsys):
    track(["list"], tmp_path, "wic/kl-0", {}, [{"step": 0, "loss_ce": 404.0}])
    assert capsys.readouterr().err == (
        "list: it must take the run wic/kl-0, got 'ConnectionError: no server'. Training goes on.\n"
    )
    assert not ListTracker.open_runs
    track(["list"], tmp_path, "wic/kl-1", {}, HISTORY)
    assert [run for run, *_ in heard].count("wic/kl-1") == 3


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    with pytest.raises(ParamsError) as error:
        check_trackers(["tensorbord"], "distill.log_with")
    assert str(error.value) == (
        "distill.log_with: it must hold trackers that accelerate knows, got 'tensorbord'. "
        "Did you mean tensorboard?"
    )
    monkeypatch.setattr("kdcache.students.trackers.get_available_trackers", lambda: [])
    with pytest.raises(ParamsError) as error:
        check_trackers(["wandb"], "distill.log_with")
    assert str(error.value) == (
        "distill.log_with: wandb must be installed, got no such package. Run: pip install wandb"
    )


def test_tensorboard_reads_back_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second replaces the first
        track(["tensorboard"], tmp_path, "wic/kl+gram-0", {"lr": 0.1}, HISTORY)
    folder = tmp_path / "tensorboard" / "wic" / "kl+gram-0"
    assert len(list(folder.glob("events.*"))) == 1
    events = EventAccumulator(str(folder)).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss_ce")] == [(0, 0.7), (1, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("tune_accuracy")] == [(1, 0.75)]
    (settings,) = folder.rglob("hparams.yml")
    assert settings.read_text() == "lr: 0.1\n"


def test_dvclive_leaves_dvc_alone(tmp_path, monkeypatch):
    pytest.importorskip("dvclive", reason="pip install dvclive")
    monkeypatch.chdir(tmp_path)
    track(["dvclive"], Path("runs/trackers"), "wic/kl-0", {"lr": 0.1}, HISTORY)
    assert json.loads(Path("runs/trackers/dvclive/wic/kl-0/metrics.json").read_text())["loss_ce"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_students_are_the_same_bytes_with_and_without(heard, project):
    """K students of one pass are K runs, and nothing but the trackers knows."""
    folder = project(train_teacher={"folds": 0}, distill={"students_per_pass": 2, "unlabelled": False})

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(app, [*arguments, "--set", "tasks=[cb]"], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    def students() -> dict[str, bytes]:
        files = (path for path in (folder / "runs" / "cb").rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    for command in ("prepare", "teach", "cache", "shrink"):
        run(command)
    run("distill", "--arm", "kl")
    without = students()
    assert not heard
    run("distill", "--arm", "kl", "--set", "distill.log_with=[list]")
    assert students() == without
    assert [name for name, step, _ in heard if step == "settings"] == ["cb/kl-0", "cb/kl-1"]
    for seed in (0, 1):
        settings = next(v for name, step, v in heard if (name, step) == (f"cb/kl-{seed}", "settings"))
        assert settings["task"] == "cb"
        assert (settings["method"], settings["lr"], settings["seed"]) == ("prefix", 0.02, seed)
        assert settings["inter_class.temperature"] == 2.0
        history = json.loads((folder / "runs" / "cb" / f"kl-{seed}" / "result.json").read_text())["history"]
        logged = [{"step": step, **v} for name, step, v in heard if name == f"cb/kl-{seed}"][1:]
        assert logged == history
