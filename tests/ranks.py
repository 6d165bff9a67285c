"""Several ranks on this machine, for tests: functions in processes, and commands of ours as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent
PATIENCE = 200
"""Seconds after which ranks are taken to wait for each other for ever."""


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "pytest",
    }


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_ranks(function: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    """Call a function of a module's top level on every rank, within a process group of gloo."""
    torch.multiprocessing.spawn(_worker, (world, free_port(), function, arguments), nprocs=world)


def _worker(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment(rank, world, port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    try:
        function(*arguments)
        torch.distributed.barrier()  # a rank that ends while another still listens to it aborts that one
    finally:
        torch.distributed.destroy_process_group()


def start_ranks(code: str, *arguments: object, more: Mapping[str, str] | None = None) -> list[tuple[str, int]]:
    """Run Python code, such as a call of our command line, with arguments on two ranks.

    Args:
        code: the same for both.
        arguments: after it.
        more: environment variables.

    Returns:
        Standard error and exit status of each rank.
    """
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **(more or {}), **environment(rank, 2, port)},
            cwd=TESTS.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    until = time.monotonic() + PATIENCE
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < until:
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()  # one that still waits for the other shows as -9
    return [(rank.communicate()[1], rank.returncode) for rank in ranks]
