"""Several processes under `accelerate launch`, one of which leads.

The first process runs the whole alignment as if it were alone: it generates, scores, filters, evaluates, writes and tells progress. The others call
`core.align.dpo.follow` and wait. Each training is told to them (pairs, configuration and the adapter's bytes, so that no disk need be shared; the
base model must be found under the same name on each machine), all train together, and they wait again until they are dismissed.

Messages are JSON and safetensors over a CPU group of their own, so no GPU is kept busy by waiting, and nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

from core.errors import ConfigError

PATIENCE = timedelta(days=30)  # a follower waits for as long as a round takes


def n_processes() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def on_cpu() -> bool:
    """Whether the launcher's processes train on the CPU."""
    import torch

    return not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def join() -> None:
    """Meets the other processes: at once, since they would give up waiting long before the first training."""
    if n_processes() > 1:
        _group()


def tell(message: Mapping[str, Any] | None, blob: bytes = b"") -> None:
    """From the first process to all others: JSON and bytes, or None that there is nothing more to do. Raises ConfigError in another process."""
    if not leads():
        raise ConfigError("only the first of several processes leads a training", remedy="the others call core.align.dpo.follow()")
    _broadcast(json.dumps(message).encode())
    _broadcast(blob)


def hear() -> tuple[Any, bytes]:
    """What the first process tells next."""
    message = json.loads(_broadcast(b""))
    return message, _broadcast(b"")


def dismiss() -> None:
    """Tells the others that nothing more comes. Not after an error: they may be in the middle of a step, and the launcher ends them."""
    if n_processes() > 1:
        tell(None)


def _broadcast(data: bytes) -> bytes:
    import torch
    import torch.distributed as dist

    group = _group()
    size = torch.tensor([len(data)], dtype=torch.int64)
    dist.broadcast(size, src=0, group=group)
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8) if leads() and data else torch.empty(int(size), dtype=torch.uint8)
    if len(content):
        dist.broadcast(content, src=0, group=group)
    return content.numpy().tobytes()


@lru_cache(maxsize=1)
def _group() -> Any:
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=on_cpu())  # joins the launcher's processes, for NCCL or for gloo
    return dist.new_group(backend="gloo", timeout=PATIENCE)
