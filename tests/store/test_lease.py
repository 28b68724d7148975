"""Leases: of two processes one goes on, and what a dead one left is taken over."""

import threading
import time
from pathlib import Path

import pytest

from kdcache.errors import CacheError
from kdcache.store import lease
from kdcache.store.lease import EVERYTHING, Lease


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder, where a renewal is due every 50 ms and a lease lapses after 1 s."""
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LAPSED_SECONDS", 1.0)
    return str(tmp_path / "parts")


def still(root: str, key: str, monkeypatch: pytest.MonkeyPatch) -> Lease:
    """A lease that is held, and never renewed: its process is dead, or stands still."""
    with monkeypatch.context() as patched:
        patched.setattr(Lease, "_renew", lambda self: None)
        return Lease(root, key, "cache/wic").__enter__()


def test_a_lease_that_is_renewed_refuses_its_own_key_alone(root):
    with Lease(root, "cache-wic", "cache/wic") as held:
        with Lease(root, "cache-cb", "cache/cb"):
            pass
        start = time.monotonic()
        with pytest.raises(CacheError, match="got another at work as cache-wic") as error:
            Lease(root, "cache-wic", "cache/wic").__enter__()
        assert time.monotonic() - start < 1.0  # it is seen to live, not waited for
        assert len(str(error.value).splitlines()) == 1
        assert held.place.names() == [held.name]  # the refused one left nothing
        held.require()
    assert held.place.names() == []
    with Lease(root, "cache-wic", "cache/wic"):
        pass


@pytest.mark.parametrize("keys", [("cache-wic", EVERYTHING), (EVERYTHING, "cache-wic")])
def test_cleaning_excludes_all_other_work(root, keys):
    first, second = keys
    with Lease(root, first, root), pytest.raises(CacheError, match=f"at work as {first}"):
        Lease(root, second, root).__enter__()


def test_what_a_dead_process_left_is_taken_over_only_after_it_lapsed(root, monkeypatch):
    dead = still(root, "cache-wic", monkeypatch)
    start = time.monotonic()
    with Lease(root, "cache-wic", "cache/wic") as taken:
        assert time.monotonic() - start > 1.0
        assert taken.place.names() == [taken.name]
        taken.require()
        with pytest.raises(CacheError, match="another process took over"):
            dead.require()  # it only stood still


def test_a_lost_lease_does_not_come_back(root):
    with Lease(root, "cache-wic", "cache/wic") as held:
        held.place.remove(held.name)
        time.sleep(0.2)
        assert held.place.names() == []
        with pytest.raises(CacheError, match="another process took over"):
            held.require()


def test_a_put_that_comes_through_too_late_gives_no_lease_back(root, monkeypatch):
    late = still(root, "cache-wic", monkeypatch)
    with Lease(root, "cache-wic", "cache/wic") as taken:
        with late.place.create(late.name) as file:  # begun before the other took over
            file.write(b"holds 9")
        taken.require()
        with pytest.raises(CacheError, match="another process took over"):
            late.require()


def test_other_files_are_no_leases(root):
    place = Lease(root, "cache-wic", "cache/wic").place
    with place.create("contract.pdf") as file:
        file.write(b"mine")
    with Lease(root, EVERYTHING, root):
        assert place.exists("contract.pdf")
    assert place.names() == ["contract.pdf"]


def test_of_processes_that_ask_at_once_one_goes_on(root):
    for _ in range(5):
        together, over = threading.Barrier(3), threading.Event()
        ended: list[bool] = []

        def ask(together=together, over=over, ended=ended) -> None:
            together.wait()
            try:
                with Lease(root, "cache-wic", "cache/wic"):
                    ended.append(True)
                    over.wait(10)
            except CacheError:
                ended.append(False)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 10
        while len(ended) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        over.set()
        for thread in threads:
            thread.join()
        assert sorted(ended) == [False, False, True]
