"""Training on several processes and machines, with the same bits for any number of them.

``model.fit(..., communicator=MPI())`` in a program that ``mpirun -n 8 python train.py`` starts trains one model on
eight processes (ranks). Each of them computes some of the batches of every update, and all make the same update from
the sum of their gradients. See the page "Beyond one machine" of the documentation.

`MPI` and `Torch` talk through mpi4py and through ``torch.distributed``; anything with the methods of `Communicator`
will do.
"""

from sparse_mixer.distributed.communicator import Communicator
from sparse_mixer.distributed.mpi import MPI
from sparse_mixer.distributed.records import Interrupted, RankError
from sparse_mixer.distributed.torch_group import Torch

__all__ = ["MPI", "Communicator", "Interrupted", "RankError", "Torch"]
