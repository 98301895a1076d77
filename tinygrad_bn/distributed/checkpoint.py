"""Checkpoints of a run on several ranks: rank 0's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import interop
from ..interop.manifest import Contents, unpack
from ..ops.checks import need_int
from .communicators import current
from .start import need_init


class Checkpoint(interop.Checkpoint):
    """``interop.Checkpoint`` for a run on several ranks: rank 0 alone writes and reads the folder.

    Every rank calls ``save`` and ``load_latest`` with its own model, optimizer, schedule and batches. What ``load_latest``
    finds goes to all ranks, so other machines need not see the folder, and the run may go on with another number of ranks:
    the model is the same on all, and the order of the data does not depend on their number. Of a ``DataParallel`` the model
    inside is saved. An error of reading is raised on every rank, as OSError; one of writing on rank 0, and ends all unless it
    is caught.
    """

    def save(self, step: int, *parts: Any, **named: Any) -> Path:
        """``interop.Checkpoint.save`` on rank 0. The others return the path too, and do not wait."""
        need_init("Checkpoint.save")
        need_int("Checkpoint.save", "step", step, 0)
        return super().save(step, *parts, **named) if current().rank == 0 else self._path(step)

    def _newest(self) -> tuple[bytes, Contents] | None:
        need_init("Checkpoint.load_latest")
        ranks = current()
        found, problem = None, None
        if ranks.rank == 0:
            try:
                found = super()._newest()
            except Exception as raised:
                problem = raised
        error = "" if problem is None else str(problem) or type(problem).__name__
        mine = b"" if found is None else found[0]
        step = -1 if found is None else found[1].step
        step_there, length, error = ranks.gather_text(f"{step} {len(mine)} {error}")[0].split(" ", 2)
        if error:
            raise OSError(f"Checkpoint.load_latest: rank 0 could not read a checkpoint: {error}") from problem
        if int(step_there) < 0:
            return None
        sent = ranks.broadcast(np.frombuffer(mine, np.uint8) if found else np.zeros(int(length), np.uint8)).tobytes()
        return found or (sent, unpack(self._path(int(step_there)), sent))
