"""The relation loss ``gram``: what the linear form saves against the dense one.

    python benchmarks/losses.py [--device cuda] [--threads 1] [--figure docs/reference/losses.svg]

Baseline: the dense form as one writes it, in the same inner dtype (double), its gradient by
autograd: ``(Ps @ Ps.T - Pt @ Pt.T).square().sum() / energy``. Forward and backward, interleaved
with ours, median of 30 calls; above 1 s a call, of 5. Peak memory above what was held before is the
process's, each form in one of its own, or on a GPU the allocator's.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

from kdcache.losses import gram

BATCHES = [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
CLASSES = [2, 3, 77]
CALLS, FEW_CALLS = 30, 5


def dense(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """gram, as its formula reads."""
    p_s, p_t = (functional.softmax(z.double() / temperature, dim=1) for z in (student, teacher))
    batch, classes = p_t.shape
    distance = (p_s @ p_s.T - p_t @ p_t.T).square().sum()
    centred = p_t - 1 / classes
    floor = (batch * 0.5 * (1 - 1 / classes)) ** 2 / (classes - 1)
    return (distance / (centred.T @ centred).square().sum().clamp(min=floor)).float()


FORMS = {"dense": dense, "kdcache": gram}


def logits(batch: int, classes: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher logits in single precision."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(batch, classes, generator=generator) for _ in range(2))
    return student.to(device).requires_grad_(), teacher.to(device)


def seconds(form: str, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Wall time of one forward and backward pass."""
    if student.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(FORMS[form](student, teacher), student)
    if student.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_times(batch: int, classes: int, device: str) -> dict[str, float]:
    """Median milliseconds of each form, calls interleaved."""
    student, teacher = logits(batch, classes, device)
    first = max(seconds(form, student, teacher) for form in FORMS)
    calls = FEW_CALLS if first > 1 else CALLS
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(calls):
        for form in FORMS:
            taken[form].append(seconds(form, student, teacher))
    return {form: 1000 * statistics.median(times) for form, times in taken.items()}


def peak_mebibytes(form: str, batch: int, classes: int, device: str) -> float:
    """Peak memory of one forward and backward pass, above what was held before."""
    if device == "cuda":  # the allocator counts for itself; a process per case would mostly start CUDA
        return _peak(form, batch, classes, device)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (form, batch, classes, device))


def _peak(form: str, batch: int, classes: int, device: str) -> float:
    torch.set_num_threads(1)
    seconds(form, *logits(8, classes, device))
    student, teacher = logits(batch, classes, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(form, student, teacher)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here on
    before = _status_kibibytes("VmRSS")
    seconds(form, student, teacher)
    return max(0.0, _status_kibibytes("VmHWM") - before) / 2**10


def _status_kibibytes(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1])


def table(rows: list[dict[str, float]]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| classes | batch | dense, ms | kdcache, ms | ratio | dense, MiB | kdcache, MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        dense_ms, ours_ms = row["dense_ms"], row["kdcache_ms"]
        lines.append(
            f"| {row['classes']} | {row['batch']} | {dense_ms:.2f} | {ours_ms:.2f} | "
            f"{dense_ms / ours_ms:.1f} | {row['dense_mib']:.1f} | {row['kdcache_mib']:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], path: Path, where: str) -> None:
    """Draw milliseconds over batch, log–log, one line per form and number of classes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "kdcache", "font.size": 10, "svg.fonttype": "path"}):
        figure, panel = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        for classes, colour in zip(CLASSES, ("#0072B2", "#E69F00", "#009E73"), strict=True):
            mine = [row for row in rows if row["classes"] == classes]
            for form, style in (("dense", "--"), ("kdcache", "-")):
                batches, times = [row["batch"] for row in mine], [row[f"{form}_ms"] for row in mine]
                panel.loglog(batches, times, style, color=colour, base=10, label=f"{form}, {classes} classes")
        panel.set_xticks(BATCHES, [str(batch) for batch in BATCHES], rotation=45)
        panel.minorticks_off()
        panel.set_xlabel("batch, rows")
        panel.set_ylabel("forward + backward, ms")
        panel.set_title(f"gram, {where}")
        panel.legend(fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--figure", type=Path, help="an SVG file for the log–log plot")
    parser.add_argument("--json", type=Path, help="a file for the raw numbers")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for classes in CLASSES:
        for batch in arguments.batches:
            row: dict[str, float] = {"classes": classes, "batch": batch}
            for form in FORMS:
                row[f"{form}_mib"] = peak_mebibytes(form, batch, classes, arguments.device)
            row |= {f"{form}_ms": ms for form, ms in measure_times(batch, classes, arguments.device).items()}
            rows.append(row)
            print(json.dumps(row), flush=True)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.figure:
        gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else ""
        draw(rows, arguments.figure, gpu or f"CPU, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
