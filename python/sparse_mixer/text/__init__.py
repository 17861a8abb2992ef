"""From text to vectors, and to the arrays that an encoder takes.

Tokenisation is that of the `tokenizers` package (``pip install "sparse_mixer[text]"``).
"""

from sparse_mixer.text.encoder import Chunks, TextEncoder
from sparse_mixer.text.tokenizer_files import load_tokenizer
from sparse_mixer.text.tokenizing import SPECIAL_TOKENS, batches, encode, padding_share, train_tokenizer

__all__ = [
    "SPECIAL_TOKENS",
    "Chunks",
    "TextEncoder",
    "batches",
    "encode",
    "load_tokenizer",
    "padding_share",
    "train_tokenizer",
]
