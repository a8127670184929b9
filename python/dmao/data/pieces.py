"""Labels that sentencepiece learns: byte pairs inside words, with "▁" at the beginning of a word."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dmao.data.labels import BLANK, BLANK_TOKEN, Labels, Unspellable, split_words
from dmao.errors import UserError, first_line


@dataclass(frozen=True)
class Pieces(Labels):
    """A sentencepiece model (base64 of its file). Its id 0, the unknown piece, is the blank of CTC."""

    kind: ClassVar[str] = "bpe"

    model: str
    tokens: tuple[str, ...] = field(init=False, compare=False, repr=False)
    _processor: Any = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        processor = _sentencepiece().SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(base64.b64decode(self.model, validate=True))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"this is not a saved label set: {first_line(error)}") from error
        pieces = [processor.IdToPiece(id) for id in range(1, len(processor))]
        object.__setattr__(self, "tokens", (BLANK_TOKEN, *pieces))
        object.__setattr__(self, "_processor", processor)

    @classmethod
    def learn(cls, texts: Iterable[str], size: int) -> Pieces:
        """`size` pieces, blank included, from `texts`; the same texts give the same pieces. UserError where there are
        fewer than that to find.
        """
        file = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.Train(
                sentence_iterator=(" ".join(words) for text in texts if (words := split_words(text))),
                model_writer=file,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                unk_id=BLANK,
                bos_id=-1,
                eos_id=-1,
                normalization_rule_name="identity",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(f"data.bpe_size: sentencepiece cannot learn {size} pieces: {first_line(error)}") from error
        return cls(base64.b64encode(file.getvalue()).decode())

    def spellings(self, word: str) -> list[list[int]]:
        """Its pieces."""
        ids = self._processor.EncodeAsIds(word)
        if BLANK in ids or not ids:
            raise Unspellable(f"word {word!r} has a character that is not in any piece")
        return [ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The words; pieces of which none begins a word are one as well."""
        return self._processor.DecodeIds([id for id in ids if id != BLANK])

    def state_dict(self) -> dict[str, Any]:
        """The model, whole."""
        return {"kind": self.kind, "model": self.model, "tokens": list(self.tokens)}


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError("labels: bpe needs sentencepiece: pip install 'dmao-kernels[recipes]'") from error
    return sentencepiece
