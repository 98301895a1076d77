"""``init()``: which ranks there are, and how they exchange arrays."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..backend import cuda_is_available, get_num_threads, set_num_threads
from ..ops.checks import need_one_of
from ..random import set_stream
from . import ending
from .communicators import Communicator, active, current

# What launchers tell each process of how many it is one: MPICH's and Intel's (also srun --mpi=pmi2), Open MPI's, and PMIx's.
_SIZES = "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"
_RANKS = "PMIX_RANK", "PMI_RANK"


def init(backend: str | None = None) -> None:
    """Find the other ranks. Call it first; a second call does nothing.

    ``backend``: "mpi" (mpi4py; arrays on a GPU go through the host), "nccl" (CuPy; the ranks find each other over MPI; never
    yet run on more than one rank), "single" (this process alone, where every exchange is the identity), or None: single
    unless the process was started by ``mpiexec`` or the like, then NCCL if every rank has a GPU of its own, else MPI.

    With more than one rank it also shares the machine's cores out to its ranks (``set_num_threads``), gives each rank its own
    stream of dropout masks, and installs what ends all ranks when one is ended by an error, in a thread too, or by a
    ``SystemExit`` with a code: without it the others would wait for ever. ``ending.py`` tells how.

    Raises RuntimeError if mpi4py is missing, or a GPU for "nccl", or if the processes are the workers of ``mpi4py.futures``;
    ValueError for another backend, also after init() has chosen one.
    """
    if backend is not None:
        need_one_of("distributed.init", "backend", backend, "mpi", "nccl", "single")
    if _chosen:
        if backend not in (None, current().name):
            raise ValueError(f"distributed.init: expected {current().name!r}, which init() has chosen before, got {backend!r}")
        return
    communicator = Communicator()
    if backend in ("mpi", "nccl") or (backend is None and started_by_launcher(os.environ)):
        communicator = _over_mpi(backend)
    active[0] = communicator
    _chosen.append(communicator.name)


_chosen: list[str] = []  # the backend, once init() has chosen it


def need_init(name: str) -> None:
    """Raise RuntimeError where ``name`` would take this process for the only one, since it is used before ``init()``."""
    if not _chosen and started_by_launcher(os.environ) and "mpi4py.futures" not in sys.orig_argv:
        raise RuntimeError(f"{name}: this process is one of several; call distributed.init() first")


def started_by_launcher(environment: Mapping[str, str]) -> bool:
    """Whether a launcher of MPI's started this process, one of several."""
    sizes = [environment[name] for name in _SIZES if name in environment]
    return any(size != "1" for size in sizes) or (not sizes and any(name in environment for name in _RANKS))


def _over_mpi(backend: str | None) -> Communicator:
    if importlib.util.find_spec("mpi4py") is None:
        raise RuntimeError("distributed.init needs mpi4py: pip install 'tinygrad_bn[mpi]'")
    if "mpi4py.futures" in sys.orig_argv:
        raise RuntimeError(
            "distributed.init: these processes are workers of mpi4py.futures, which runs the script on rank 0 alone; to train "
            "one model on all of them start it without -m mpi4py.futures"
        )
    from .mpi import MPICommunicator

    MPI = ending.start_mpi()
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    local = node.rank, node.size
    communicator: Communicator = MPICommunicator(world, local)
    if world.size > 1:
        ending.install(MPI)
        set_num_threads(_threads(MPICommunicator(node, local)))
        set_stream(world.rank)
    if backend != "mpi" and (backend == "nccl" or _a_gpu_each(communicator)):
        from .nccl import NCCLCommunicator

        communicator = NCCLCommunicator(communicator)
    return communicator


def _threads(node: Communicator) -> int:
    """This rank's share of the cores that it may use: some launchers give each rank its own, some all of them to all."""
    cores: Any = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    sharing = node.gather_text(str(list(cores))).count(str(list(cores)))
    return min(get_num_threads(), max(1, len(cores) // sharing))


def _a_gpu_each(ranks: Communicator) -> bool:
    """Whether every rank of every machine has a GPU of its own, and NCCL."""
    mine = False
    if cuda_is_available():
        from .nccl import gpus, library

        mine = gpus() > ranks.local_rank and library() is not None
    return set(ranks.gather_text(str(mine))) == {"True"}


def rank() -> int:
    """The number of this process among all, from 0; 0 before ``init()``."""
    return current().rank


def size() -> int:
    """The number of ranks; 1 before ``init()``."""
    return current().size


def barrier() -> None:
    """Return when all ranks have called this. Raises ValueError, on every rank, where others call another exchange."""
    need_init("barrier")
    current().agree("barrier")
    current().barrier()


if started_by_launcher(os.environ):
    ending.note_exits()  # at the import, for a script that ends with sys.exit(main()), where main() calls init()
