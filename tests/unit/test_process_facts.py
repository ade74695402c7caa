"""What the kernel shows of threads: which of them move, or may be woken from outside."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.agent.process_facts import Task, compare

MAIN = 4_000_000
"""No process has this id, so nothing but the snapshots counts."""


def task(name: str = "python", *, channel: str = "futex_do_wait", process: int = MAIN) -> Task:
    return Task(process, name, "S", cpu_seconds=0.0, switches=0, channel=channel)


def helpers(before: Task, *, python: bool, switches: int = 0) -> tuple[str, ...]:
    """Whether a second thread, seen twice, may be what the main thread waits for."""
    after = dataclasses.replace(before, switches=switches)
    main = task()
    threads = [MAIN + 1] if python else []
    return compare(
        MAIN, {MAIN: main, MAIN + 1: before}, {MAIN: main, MAIN + 1: after}, threads
    ).helpers


@pytest.mark.parametrize(
    "channel", ["ep_poll", "do_epoll_wait", "sk_wait_data", "hrtimer_nanosleep"]
)
def test_a_python_thread_that_the_outside_may_wake_is_waited_for(channel: str) -> None:
    """An event loop shows as one channel on older kernels, and as another on newer ones."""
    assert helpers(task(channel=channel), python=True)


@pytest.mark.parametrize("channel", ["futex_do_wait", "pipe_read", "anon_pipe_read"])
def test_a_python_thread_that_waits_for_a_lock_helps_nobody(channel: str) -> None:
    assert helpers(task(channel=channel), python=True) == ()


@pytest.mark.parametrize("channel", ["ep_poll", "do_epoll_wait", "do_poll"])
def test_loops_of_libraries_wait_for_nothing_of_the_scripts(channel: str) -> None:
    assert helpers(task(channel=channel), python=False) == ()


def test_a_thread_that_sends_packets_moves() -> None:
    assert helpers(task("uploader", channel="ep_poll"), python=False, switches=100)


@pytest.mark.parametrize(
    "name", ["gloo_tcp_loop", "pt_nccl_watchdg", "NCCL Progress 1", "cuda-EvtHandlr"]
)
def test_threads_of_collectives_poll_for_ever_and_prove_nothing(name: str) -> None:
    assert helpers(task(name, channel="do_epoll_wait"), python=False, switches=100) == ()


@pytest.mark.parametrize("channel", ["fifo_pipe_read", "pipe_read", "", "0"])
def test_our_own_thread_that_waits_for_the_agent_helps_nobody(channel: str) -> None:
    """Kernels name its wait in different ways, or not at all: a hang must be seen on each."""
    assert helpers(task("babysit-flight", channel=channel), python=True, switches=100) == ()
