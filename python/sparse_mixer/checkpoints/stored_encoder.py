"""An encoder's methods for files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from sparse_mixer._core.calls import CalledEncoder
from sparse_mixer._core.paths import PathLike
from sparse_mixer.checkpoints import encoder_files
from sparse_mixer.checkpoints.report import LoadReport


class StoredEncoder(CalledEncoder):
    """An encoder that can be written to files and read from them; base of `SparseMixer`."""

    def save(self, path: PathLike, *, file_format: str | None = None) -> None:
        """Write the encoder to a file, which is replaced in one step: a crash leaves the old file or the new one.

        Args:
            path: The file. Its ending chooses the format: ``.npz`` and ``.weights.h5`` hold the weights alone
                (TensorFlow's `load_weights` reads the latter, for the model
                ``tf_keras.Model(net.inputs, net(net.inputs))``; needs the extra ``h5``), any other name is our own
                format: safetensors with the configuration, for `load`.
            file_format: ``"safetensors"``, ``"npz"`` or ``"weights_h5"``, whatever the ending; or ``"huggingface"``
                for a folder at `path` that `transformers` loads, of an encoder that is a BERT, ELECTRA or FNet.

        Weights are written as float32; `load` restores the `dtype` that the encoder has.

        Raises:
            ValueError: The configuration holds a Python callable, or the ending is that of an unsupported format.
            OSError: The file cannot be written; the old one is untouched.
            KeyboardInterrupt: Interrupted; the old file is untouched.
        """
        encoder_files.save(self, path, file_format=file_format)

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        config: Mapping[str, Any] | None = None,
        prefix: str | None = None,
        strict: bool = True,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a file.

        Args:
            path: A file of `save`, a folder of a Hugging Face BERT, RoBERTa, ELECTRA, DistilBERT or FNet, of
                google-research/bert or of KerasHub's BERT, or with `config` anything that `load_weights` reads. A
                folder without a pooler makes an encoder without one.
            config: Arguments of the constructor, for files that hold weights alone.
            prefix: Where in the file the encoder is, if there are several.
            strict: Whether every weight must be there. Otherwise those that are not are initialised; `loaded_from`
                names them.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the file, for example
                ``dtype="bfloat16"``. A smaller `max_sequence_length` takes the first positions, a smaller
                `num_layers` the first layers, and ``with_pooler=False`` leaves out the pooler.

        Raises:
            CheckpointError: The file is damaged, or its weights do not fit its configuration; the message names file
                and weights.
            ValueError: There is no configuration.
            OSError: The file cannot be read.
        """
        options: Any = {"prefix": prefix, "strict": strict, "num_threads": num_threads, "isa": isa}
        return encoder_files.load(cls, path, config=config, **options, **changes)

    @classmethod
    def from_flax(
        cls,
        params: PathLike | Mapping[str, Any],
        config: Mapping[str, Any],
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder from a checkpoint of the paper's JAX code, with ``semantics="paper"``. JAX is not needed.

        Args:
            params: The folder of a checkpoint (``replicated_checkpoint_<step>``, and for models with experts one
                ``shard-<p>-of-<P>_checkpoint_<step>`` per host; the latest complete step is taken), a file of such,
                or the parameters: a mapping of slash paths such as ``"encoder/embedder/word/embedding"`` to arrays,
                or nested mappings. Heads and optimiser state beside the encoder are passed over.
            config: Keys of the JAX code's configuration: ``model_arch``, ``d_model``, ``moe_layout``, ``pad_id``, ...
                Missing ones have the JAX code's defaults; ``vocab_size`` is that of the word table. Keys that do
                not belong to the encoder (training, data) are ignored; `ignored_config_keys` has them.
            prefix: Where among the parameters the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of `config`, for example
                ``router_dtype="bfloat16"`` or ``group_mixup=True`` to follow the JAX code exactly.

        Raises:
            CheckpointError: Files are damaged or incomplete, or the weights do not fit `config`.
            ValueError: A name in `config` is unknown, or ``pad_id`` is missing where there is attention.
            OSError: Files cannot be read.
        """
        return encoder_files.from_flax(cls, params, config, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    @classmethod
    def from_preset(
        cls,
        name: str,
        weights: PathLike | Mapping[str, Any] | None = None,
        *,
        prefix: str | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        **changes: Any,
    ) -> Self:
        """Build an encoder with a published configuration. Nothing is downloaded: weights come from a file you have.

        Example:
            >>> sizes = dict(vocab_size=100, hidden_size=64, inner_dim=128)
            >>> encoder = SparseMixer.from_preset("sparse_mixer_small", **sizes, seed=0)
            >>> encoder.summary(lambda text: print(text.splitlines()[-1].split(":")[0]))
            Preset 'sparse_mixer_small' is a configuration without weights

        Args:
            name: One of ``"sparse_mixer_base"``, ``"fast_sparse_mixer_base"`` (half the expert capacity),
                ``"sparse_mixer_small"``, ``"fast_sparse_mixer_small"`` (8 layers), ``"bert_base"`` and
                ``"fnet_base"``. All have ``semantics="paper"``, 512 positions and 4 type ids.
            weights: What `load_weights` reads; None stands for random weights.
            prefix: Where in the file the encoder is, if there are several.
            num_threads: As in the constructor.
            isa: As in the constructor.
            **changes: Arguments of the constructor that replace those of the preset. Set `pad_id` to the tokenizer's;
                the preset has 0. Without `vocab_size` it is that of the file, or 32,000.

        Raises:
            ValueError: An unknown name.
            CheckpointError: The file is damaged, or its weights do not fit.
            OSError: The file cannot be read.
        """
        return encoder_files.from_preset(cls, name, weights, prefix=prefix, num_threads=num_threads, isa=isa, **changes)

    def load_weights(
        self,
        source: PathLike | Mapping[str, Any],
        *,
        strict: bool = True,
        prefix: str | None = None,
    ) -> LoadReport:
        """Replace the weights by those of a file: all at once, or on failure none.

        The encoder is found inside larger models (classifiers, pre-training models) by its weights' names. Neither
        TensorFlow nor JAX is needed.

        Args:
            source: One of

                * a file of `save` or another safetensors or ``.npz`` file with Keras names,
                * a TensorFlow checkpoint (prefix, ``.index`` file or folder) or SavedModel folder,
                * a Keras ``.weights.h5``, legacy ``.h5`` or ``.keras`` file (extra ``h5``),
                * a Flax msgpack file, or the folder of a training step with its shards,
                * a folder or safetensors file of Hugging Face's BERT or FNet,
                * a mapping of names, in any of these schemes, to arrays.
            strict: Whether every weight must be there, and nothing else below the encoder's place in the file.
            prefix: Where in the file the encoder is, if there are several.

        Returns:
            What was loaded from where, and with ``strict=False`` what was not.

        Raises:
            CheckpointError: The file is damaged or does not fit; nothing has changed.
            OSError: The file cannot be read.
        """
        return encoder_files.load_weights(self, source, strict=strict, prefix=prefix)

    def load_report(self, source: PathLike | Mapping[str, Any], *, prefix: str | None = None) -> LoadReport:
        """What `load_weights` would load and what does not fit; reads no weight and changes nothing.

        Args:
            source: As in `load_weights`.
            prefix: As in `load_weights`.
        """
        return encoder_files.load_report(self, source, prefix=prefix)
