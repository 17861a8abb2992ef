"""From text to the arrays that an encoder takes.

Tokenisation is that of the `tokenizers` package (``pip install "sparse_mixer[text]"``).
"""

from sparse_mixer.text.tokenizing import SPECIAL_TOKENS, batches, encode, padding_share, train_tokenizer

__all__ = ["SPECIAL_TOKENS", "batches", "encode", "padding_share", "train_tokenizer"]
