"""Several processes under `accelerate launch`: the first leads, the others train along.

The first process (the leader) runs the whole alignment as a single process would: it generates, scores, filters,
evaluates, writes files and reports progress. Every other process (a follower) calls `core.align.dpo.follow_leader` and
waits. For each training the leader broadcasts the pairs, the configuration and the adapter's bytes, so the processes
need no shared disk (the base model must be found under the same name on each machine). All processes train together;
then the followers wait again, until the leader calls `shutdown`.

Messages are JSON and safetensors bytes over a separate CPU group, so waiting keeps no GPU busy and nothing is pickled.
torch is imported inside functions, because the command line asks `is_leader` before it needs torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from core.errors import ConfigError

TIMEOUT = timedelta(days=30)  # a follower waits for as long as a round takes


def n_processes() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this is the first process, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def trains_on_cpu() -> bool:
    """Whether the launcher's processes train on the CPU."""
    import torch

    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def join_processes() -> None:
    """Connects this process with the others at once: by the first training they would have timed out."""
    if n_processes() > 1:
        _group()


def broadcast(message: Mapping[str, Any] | None, blob: bytes = b"") -> None:
    """Sends JSON and bytes from the leader to all followers; None ends them. Raises ConfigError in a follower."""
    if not is_leader():
        raise ConfigError("only the first of several processes leads a training", remedy="the others call core.align.dpo.follow_leader()")
    _broadcast_bytes(json.dumps(message).encode())
    _broadcast_bytes(blob)


def receive() -> tuple[Any, bytes]:
    """Waits in a follower for the leader's next message and bytes."""
    message = json.loads(_broadcast_bytes(b""))
    return message, _broadcast_bytes(b"")


def shutdown() -> None:
    """Ends the followers. After an error the launcher does it, since they may be in the middle of a step."""
    if n_processes() > 1:
        broadcast(None)


def _broadcast_bytes(data: bytes) -> bytes:
    """The leader's `data`, in every process."""
    import torch
    import torch.distributed as dist

    group = _group()
    size = torch.tensor([len(data)], dtype=torch.int64)
    dist.broadcast(size, src=0, group=group)
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if is_leader() and data else torch.empty(int(size), dtype=torch.uint8)
    if len(content):
        dist.broadcast(content, src=0, group=group)
    return content.numpy().tobytes()


@lru_cache(maxsize=1)
def _group() -> Any:
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=trains_on_cpu())  # joins the launcher's processes, by NCCL or by gloo
    return dist.new_group(backend="gloo", timeout=TIMEOUT)
