"""``same_training.py`` on emulated GPUs, one for each rank: so the exchange goes over NCCL, which is emulated too.

TINYGRAD_BN_DEVICE=cuda EMULATED_GPU_COUNT=2 mpiexec -n 2 python tests/distributed/on_emulated_gpus.py
"""

from __future__ import annotations

import emulated_gpu

emulated_gpu.install()

import same_training  # noqa: E402  (CuPy comes after its GPU)

from tinygrad_bn import distributed  # noqa: E402

distributed.init()
assert distributed.communicators.current().name == "nccl"
same_training.STEPS = 12  # it is slow
same_training.main()
