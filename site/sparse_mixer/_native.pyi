"""The Rust core. Private: the public interface is `sparse_mixer.SparseMixer` and its neighbours."""

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Encoder",
    "InternalError",
    "__version__",
    "cpu_info",
    "get_num_threads",
    "release_scratch",
    "set_num_threads",
]

__version__: str

class InternalError(RuntimeError):
    """A bug in this library. The encoder that raised it stays usable; please report the arguments that led to it."""

@final
class Encoder:
    """Configuration and weights of one encoder. Safe to use from several threads at once; keeps no per-call state."""

    def __new__(
        cls,
        config: str,
        provider: Callable[[str, tuple[int, ...]], npt.NDArray[np.float32]] | None = None,
        *,
        activation: Callable[[Any], Any] | None = None,
        activation_derivative: Callable[[Any], Any] | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> Encoder:
        """Build an encoder.

        Args:
            config: Canonical JSON.
            provider: Called with name and shape of each weight, in Keras order, for its initial values (float32). None
                draws them from the configured seed.
            activation: The function behind the activation ``"custom"``: float32 ``[rows, width]`` to the same.
            activation_derivative: Its derivative, for training.
            num_threads: Most threads per call; None follows `get_num_threads`.
            isa: Instruction set; None for the best.

        Raises:
            ValueError: An argument that cannot work.
        """

    def forward(
        self,
        word_ids: npt.NDArray[Any] | None = None,
        mask: npt.NDArray[np.float32] | None = None,
        type_ids: npt.NDArray[Any] | None = None,
        *,
        word_embeddings: npt.NDArray[np.float32] | None = None,
        dense_inputs: npt.NDArray[np.float32] | None = None,
        dense_mask: npt.NDArray[np.float32] | None = None,
        dense_type_ids: npt.NDArray[Any] | None = None,
        training: bool = False,
        seed: int = 0,
        outputs: Sequence[str] | None = None,
        check_finite: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Encode a batch.

        All arrays are copied before the interpreter is released, so other threads may change them meanwhile.

        Args:
            word_ids: int32 or int64 [B, S]; or None with `word_embeddings`.
            mask: float32 [B, S]; None only without attention layers.
            type_ids: int32 or int64 [B, S].
            word_embeddings: float32 [B, S, W].
            dense_inputs: float32 [B, M, W], appended to the words; then S above is S - M.
            dense_mask: float32 [B, M].
            dense_type_ids: int32 or int64 [B, M].
            training: Training capacity factor, dropout and jitter.
            seed: Source of dropout and jitter.
            outputs: Names of the wanted outputs; None for sequence_output, pooled_output and encoder_outputs.
            check_finite: Raise ValueError naming the first block whose output is not finite.

        Returns:
            Outputs by name, and the auxiliary values of the MoE layers by name.

        Raises:
            ValueError: Shapes, ids or numbers that cannot work.
            TypeError: An array of a wrong type.
            InternalError: A bug.
        """

    def weight_specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name, without the encoder's, and shape of each weight in Keras order."""

    def get_weights(self, indices: Sequence[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """Copies of the weights at `indices` in Keras order, of one moment; None for all."""

    def get_weight(self, index: int) -> npt.NDArray[np.float32]:
        """A copy of the weight at `index` in Keras order."""

    def set_weights(self, weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Replace all weights, or none if a shape is wrong."""

    def assign(self, indices: Sequence[int], weights: Sequence[npt.NDArray[np.float32]]) -> None:
        """Replace the weights at `indices`, or none if a shape is wrong."""

    def astype(self, dtype: str) -> Encoder:
        """A new encoder with the weights in `dtype`; weights already in it are shared until either changes."""

    def set_num_threads(self, num_threads: int | None) -> None:
        """Limit the threads per call; None follows `get_num_threads`."""

    def memory_estimate(self, batch: int) -> int:
        """Bytes of weights, scratch and outputs for calls with `batch` examples."""

    @property
    def config(self) -> str:
        """The canonical JSON, defaults resolved."""

    @property
    def dtype(self) -> str:
        """Storage type of the weights."""

    @property
    def isa(self) -> str:
        """Instruction set of the kernels."""

    @property
    def num_threads(self) -> int:
        """Most threads per call."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that the weights take."""

def cpu_info() -> dict[str, Any]:
    """What the kernels found.

    Returns:
        Dict of ``isa`` (in use by default), ``available`` (names, slowest first) and ``num_threads`` (default).
    """

def set_num_threads(num_threads: int | None) -> None:
    """Set the most threads of calls on encoders without a number of their own; None for the automatic choice.

    Automatic is ``SPARSE_MIXER_NUM_THREADS`` if set, else what CPU affinity and control-group quota allow, at most
    ``OMP_NUM_THREADS``.
    """

def get_num_threads() -> int:
    """Most threads of calls on encoders without a number of their own."""

def release_scratch() -> None:
    """Give back the scratch memory that is kept between calls."""
