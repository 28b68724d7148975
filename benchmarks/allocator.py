"""How much memory a computation takes on a CPU, by the record of torch's allocator."""

from collections.abc import Callable

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.profiler._utils import traverse_dfs


def peak_bytes(compute: Callable[[], object]) -> int:
    """What a CPU's allocator held at most, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        compute()
    nodes = traverse_dfs(told.profiler.kineto_results.experimental_event_tree())
    events = sorted(
        (node for node in nodes if node.tag == _EventType.Allocation), key=lambda node: node.start_time_ns
    )
    first, *_ = held = [node.typed[1] for node in events]
    return max(one.total_allocated for one in held) - (first.total_allocated - first.alloc_size)
