"""Write the SentencePiece model of the tests and what the `sentencepiece` package gives for some texts.

Run from the repository root, with `sentencepiece` installed::

    python tests/reference/make_sentencepiece.py
"""

import io
import json
from pathlib import Path

import sentencepiece

FOLDER = Path(__file__).parents[1] / "golden" / "sentencepiece"
TEXTS = [
    "the cat sat on the mat",
    "  spaces   at both  ends ",
    "Números, süße Äpfel & 中文",
    "unknown: ☃ and \u0378",
    "ﬁne ligatures ①②",
    "",
    "tab\tand\nnewline",
    "a" * 60,
    "l'été est là, n'est-ce pas?",
]


def main() -> None:
    """Write both files."""
    lines = [line for file in sorted(Path("docs").glob("*.md")) for line in file.read_text().splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + TEXTS * 5),
        model_writer=model,
        vocab_size=300,
        model_type="unigram",
        character_coverage=0.99,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    # The text that it was trained from and the like are no part of the model.
    (FOLDER / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    expected = [[text, processor.encode(text)] for text in TEXTS]
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
