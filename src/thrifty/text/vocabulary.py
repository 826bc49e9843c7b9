"""The bytes of tokens. A character may span tokens, so a token need not be valid text."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer


def read_vocabulary(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes of the first `size` tokens; empty for unused ids."""
    added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}
    vocabulary: list[bytes] = []
    for index in range(size):
        token = tokenizer.id_to_token(index)
        if token is None:
            vocabulary.append(b"")
        elif index in added:
            vocabulary.append(token.encode())
        else:
            vocabulary.append(decode_piece(tokenizer, token))
    return vocabulary


def decode_piece(tokenizer: Tokenizer, piece: str) -> bytes:
    """The bytes of a token from its spelling in the vocabulary."""
    if type(tokenizer.decoder).__name__ == "ByteLevel":
        return _decode_byte_level(piece)
    return _decode_sentencepiece(piece)


@cache
def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's characters and the bytes they represent. Radford et al. 2019."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(value): value for value in printable}
    hidden = [value for value in range(256) if value not in printable]
    alphabet.update({chr(256 + offset): value for offset, value in enumerate(hidden)})
    return alphabet


def _decode_byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


def _decode_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
