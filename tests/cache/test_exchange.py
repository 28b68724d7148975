"""Outputs of any teacher become logits by a rule, and an exported cache is read back."""

from pathlib import Path

import numpy as np
import pytest
from builders import rows

from kdcache.cache.exchange import to_logits, write_outputs
from kdcache.cache.read_outputs import Outputs, read_outputs
from kdcache.errors import DataError


@pytest.mark.parametrize("labels", [("false", "true"), ("1", "0"), ("2", "1")])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".npz"])
def test_what_export_writes_import_reads_bit_for_bit(tmp_path: Path, suffix: str, labels: tuple[str, ...]):
    whole = rows()
    write_outputs(lambda: [whole.take(range(4)), whole.take(range(4, 10))], labels, tmp_path / f"x{suffix}")
    outputs = read_outputs(tmp_path / f"x{suffix}", labels)
    assert outputs.example_id == whole.example_id
    assert outputs.content_hash == whole.content_hash
    assert (to_logits(outputs, "refuse", "x") == whole.logits).all()
    if suffix in (".parquet", ".npz"):
        assert (outputs.features == whole.features).all()


def outputs(values, kind: str = "probabilities") -> Outputs:
    array = np.array(values, dtype=float)
    none = np.full(len(array), -1)
    return Outputs([f"id-{i}" for i in range(len(array))], kind, array, np.empty((len(array), 0)), None, none)


NAN = float("nan")


@pytest.mark.parametrize(
    ("policy", "given", "wanted"),
    [
        ("renormalise", [0.3, 0.1, 0.0], [0.75, 0.25, 0.0]),
        ("renormalise", [0.3, 0.1, NAN], [0.75, 0.25, 0.0]),
        ("spread", [0.3, 0.1, 0.0], [0.5, 0.3, 0.2]),
        ("spread", [0.3, 0.1, NAN], [0.3, 0.1, 0.6]),
        ("spread", [0.3, NAN, NAN], [0.3, 0.35, 0.35]),
    ],
)
def test_missing_mass_goes_where_the_policy_says(policy, given, wanted):
    with np.errstate(divide="ignore"):
        for kind, values in (("probabilities", given), ("logprobs", np.log(given))):
            found = np.exp(to_logits(outputs([values], kind), policy, "x.csv"))
            assert np.allclose(found, [wanted], atol=3e-6), kind
            assert np.isfinite(to_logits(outputs([values], kind), policy, "x.csv")).all()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-7, 1e-12])
def test_renormalised_probabilities_keep_their_ratio_however_small_they_are(scale):
    """A language model gives all label words of a row little mass where another word is likelier."""
    given = outputs([[0.8 * scale, 0.01 * scale, NAN]])
    found = np.exp(to_logits(given, "renormalise", "x.csv"))[0]
    assert found[:2] == pytest.approx([80 / 81, 1 / 81], rel=1e-4)
    assert found[2] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([[0.5, 0.5], [0.5, 0.4]], "probabilities",
         "x.csv: probabilities must be given for each label and sum to 1, got less for id-1. "
         "Choose a policy: --missing-mass renormalise or spread."),
        ([[0.5, NAN]], "probabilities", "got less for id-0"),
        ([[0.9, 0.2]], "probabilities",
         "x.csv: probabilities must lie between 0 and 1 and sum to at most 1, got others for id-0."),
        ([[-0.1, 1.1]], "probabilities", "got others for id-0"),
        ([[NAN, NAN]], "probabilities", "got others for id-0"),
        ([[0.1, 0.2]], "logprobs", "sum to at most 1, got others for id-0"),
        ([[1.0, NAN]], "logits", "x.csv: each label must have a finite logit, got others for id-0."),
        ([[1.0, float("inf")]], "logits", "got others for id-0"),
        ([[1.0, float("-inf")]], "logits", "got others for id-0"),
        ([[0.0, 0.0], [1.0, 1e39]], "logits", "got others for id-1"),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_named(given, kind, message):
    with pytest.raises(DataError) as error:
        to_logits(outputs(given, kind), "refuse", "x.csv")
    assert message in str(error.value)
