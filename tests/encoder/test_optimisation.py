"""The schedule rises and falls once; a checkpoint is whole or not there."""

import os

import pytest
import torch

from kdcache.encoder.optimisation import load_checkpoint, lr_factor, save_checkpoint


@pytest.mark.parametrize(("steps", "fraction"), [(1, 0.1), (2, 0.0), (10, 0.3), (100, 0.1)])
def test_the_rate_warms_up_to_its_peak_and_decays(steps, fraction):
    factors = [lr_factor(step, steps, fraction) for step in range(steps)]
    top = factors.index(max(factors))
    assert max(factors) == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert lr_factor(steps, steps, fraction) == 0.0


def test_a_checkpoint_reads_back_and_survives_a_kill_while_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    assert load_checkpoint(path) is None
    save_checkpoint({"step": 3, "weights": [torch.arange(2.0)]}, path)

    def die_half_way(file):
        os.ftruncate(file, 50)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"step": 4}, path)
    state = load_checkpoint(path)
    assert state["step"] == 3
    assert torch.equal(state["weights"][0], torch.arange(2.0))


def test_a_checkpoint_that_is_not_whole_is_dropped_with_a_line(tmp_path, capsys):
    path = tmp_path / "state.pt"
    save_checkpoint({"step": 3}, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for broken in (b"", whole[:20], whole[:-1], whole + b"x", bytes(flipped), b"PK\x03\x04"):
        path.write_bytes(broken)
        assert load_checkpoint(path) is None
        assert not path.exists()
        error = capsys.readouterr().err
        assert str(path) in error
        assert len(error.splitlines()) == 1
    path.write_bytes(whole)
    assert load_checkpoint(path) == {"step": 3}
