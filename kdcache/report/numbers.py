"""Findings → one value of plain JSON types: every number that the page shows, and their intervals."""

from typing import Any

from kdcache.report.answer import answer
from kdcache.report.cost import savings
from kdcache.report.findings import WANTED, Findings
from kdcache.stats.estimates import Estimate
from kdcache.stats.verdicts import GapShare, Verdict

DIGITS = 6  # beyond them another machine differs


def numbers(findings: Findings) -> dict[str, Any]:
    """For machines; points and percent throughout, intervals of 95 %."""
    return {
        "answer": [{"topic": sentence.topic, "text": sentence.text} for sentence in answer(findings)],
        "roles": vars(findings.roles),
        "levels": {
            task: {metric: _each(of_metric) for metric, of_metric in metrics.items()}
            for task, metrics in findings.levels.items()
        },
        "mean_levels": _each(findings.mean_levels),
        "gains": {arm: _each(by_task) for arm, by_task in findings.gains.items()},
        "mean_gains": _each(findings.mean_gains),
        "gap_tasks": findings.gap_tasks,
        "shares": {arm: _share(share) for arm, share in findings.shares.items()},
        "comparisons": [
            {
                "question": c.question, "arm": c.arm, "over": c.over, "by_task": _each(c.by_task),
                "mean": _estimate(c.mean), "p": _rounded(c.mean.p),
                "place": c.place, "p_holm": _rounded(c.holm),
                "with_gap": _estimate(c.with_gap) if c.with_gap else None,
            }
            for c in findings.comparisons
        ],
        "verdicts_over": findings.teacher,
        "verdicts": {
            task: {arm: _verdict(found) for arm, found in of_task.items()}
            for task, of_task in findings.verdicts.items()
        },
        "not_working": findings.not_working,
        "diverged": {record.name: record.metrics.get("diverged", []) for record in findings.records},
        "planning": vars(findings.plan) | {"half": _rounded(findings.plan.half), "wanted": WANTED}
        if findings.plan else None,
        "fidelity": {
            record.name: {
                arm: _rounded(100 * of_arm["validation"]["agreement"]["mean"])
                for arm, of_arm in record.metrics["arms"].items()
                if "agreement" in of_arm["validation"]
            }
            for record in findings.records
        },
        "relations": {
            task: {
                model: dict(zip(("within", "between"), found.contrast(model), strict=True))
                | {"distance": found.distances.get(model)}
                for model in found.matrices
            }
            for task, found in findings.relations.items()
        },
        "savings": [
            vars(saving) | {"break_even": _rounded(saving.break_even)}
            for saving in savings(findings.metrics, findings.recipes)
        ],
        "identities": {record.name: dict(record.identity) for record in findings.records},
    }  # fmt: skip


def _each(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {name: _estimate(found) for name, found in estimates.items()}


def _estimate(found: Estimate) -> dict[str, Any]:
    return {
        "points": _rounded(found.points), "low": _rounded(found.low), "high": _rounded(found.high),
        "seeds": found.seeds, "groups": found.groups,
    }  # fmt: skip


def _share(share: GapShare) -> dict[str, Any]:
    return {
        "percent": _rounded(share.percent), "low": _rounded(share.low), "high": _rounded(share.high),
        "gain": _estimate(share.gain), "gap": _estimate(share.gap),
    }  # fmt: skip


def _verdict(found: Verdict) -> dict[str, Any]:
    return {
        "verdict": found.verdict, "bound": _rounded(found.bound), "margin": found.margin,
        "difference": _estimate(found.difference), "advantage": _estimate(found.advantage),
    }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS) + 0.0  # no −0
