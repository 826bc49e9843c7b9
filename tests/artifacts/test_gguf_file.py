"""GGUF files are read as the `gguf` package reads them, and damage is detected."""

from __future__ import annotations

import struct
from datetime import timedelta
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.artifacts.damaged import little_memory, read_gguf
from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import make_gpt2_metadata
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.errors import FormatRefused, IntegrityError

TINY = Llama(layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, inner=8, vocab=300, context=16)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def header(*entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    """A GGUF's bytes, entry by entry."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    return head + b"".join(entries) + b"".join(tensors)


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        string(name)
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        + struct.pack("<IQ", kind, offset)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    return TINY.write_gguf(path, extra=make_gpt2_metadata(300)).read_bytes()


@pytest.fixture(scope="module")
def header_end(whole: bytes, folder: Path) -> int:
    path = folder / "whole.gguf"
    path.write_bytes(whole)
    end = min(t.offset for t in GgufFile(path).tensors.values())
    path.unlink()
    return end


def write(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


# reading


def test_metadata_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("t.u8", 200)
    writer.add_int8("t.i8", -100)
    writer.add_uint16("t.u16", 60_000)
    writer.add_int16("t.i16", -30_000)
    writer.add_uint32("t.u32", 4_000_000_000)
    writer.add_int32("t.i32", -2_000_000_000)
    writer.add_uint64("t.u64", 2**63)
    writer.add_int64("t.i64", -(2**62))
    writer.add_float32("t.f32", 1.5)
    writer.add_float64("t.f64", 1e300)
    writer.add_bool("t.yes", True)
    writer.add_bool("t.no", False)
    writer.add_string("t.text", "grüße 🦙\n")
    writer.add_array("t.texts", ["a", "ü", " "])
    writer.add_array("t.ints", [1, 2, 3])
    writer.add_array("t.floats", [0.5, -0.25])
    writer.add_array("t.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    reader = gguf.GGUFReader(path)
    theirs = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    assert file.metadata == theirs
    assert len(file.metadata) == 18
    assert file.architecture == "llama"
    assert file.get("missing") is None
    assert file.get("missing", 7) == 7
    assert file.tensors == {}


def test_tensors_are_what_the_gguf_package_reads(tmp_path: Path) -> None:
    shape = Llama(hidden=64, head_dim=16, inner=96)
    path = shape.write_gguf(tmp_path / "model.gguf")
    file, reader = GgufFile(path), gguf.GGUFReader(path)
    assert list(file.tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(int(n) for n in reversed(theirs.shape))
        assert (ours.offset, ours.size_bytes) == (theirs.data_offset, theirs.n_bytes)
        np.testing.assert_array_equal(file.read_tensor(theirs.name), theirs.data)
    assert file.parameters() == sum(int(t.n_elements) for t in reader.tensors)


STORED = [GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0,
          GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_0,
          GGMLQuantizationType.Q5_1]  # fmt: skip
STEPS = {"F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254, "Q4_0": 1 / 8, "Q4_1": 1 / 15,
         "Q5_0": 1 / 16, "Q5_1": 1 / 31}  # fmt: skip


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
def test_quantized_tensors_come_back_close_to_what_was_stored(
    tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (6, 64)).astype(np.float32)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if kind is GGMLQuantizationType.F16:
        writer.add_tensor("w", values.astype(np.float16))
    else:
        writer.add_tensor("w", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = GgufFile(path).read_tensor("w")
    theirs = gguf.GGUFReader(path).tensors[0]
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(
        ours, gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(values.shape)
    )
    # The largest value of a block is at most 1, so the error is at most a step of its grid.
    np.testing.assert_allclose(ours, values, atol=1.1 * STEPS[kind.name])


K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("name", K_QUANTS)
def test_blocks_of_other_types_are_read_as_the_gguf_package_reads_them(
    tmp_path: Path, name: str
) -> None:
    kind = GGMLQuantizationType[name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows, columns = 3, 2 * block
    generator = np.random.default_rng(1)
    # Small bytes keep the half-precision scales finite, wherever they are in a block.
    raw = generator.integers(0, 60, (rows, 2 * block_bytes), dtype=np.uint8)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(path)
    assert file.tensors["w"].shape == (rows, columns)
    expected = gguf.quants.dequantize(raw, kind)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(file.read_tensor("w"), expected.reshape(rows, columns))


def test_type_without_a_reader_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatRefused, match="tensor w has the type I32, which is not supported"):
        GgufFile(path).read_tensor("w")


def test_version_two_and_another_alignment_are_read(tmp_path: Path) -> None:
    data = header(
        entry("general.architecture", 8, string("llama")),
        entry("general.alignment", 4, struct.pack("<I", 64)),
        tensors=(tensor("w", (2, 1), 0, 0),),
        version=2,
    )
    data = data.ljust(-(-len(data) // 64) * 64, b"\0") + struct.pack("<2f", 1.5, -2.5)
    file = GgufFile(write(tmp_path, data))
    np.testing.assert_array_equal(file.read_tensor("w"), [[1.5, -2.5]])


def test_text_that_is_not_utf8_does_not_stop_the_reading(tmp_path: Path) -> None:
    file = GgufFile(write(tmp_path, header(entry("x", 8, string(b"\xff\xfe")))))
    assert file.metadata["x"].encode(errors="surrogateescape") == b"\xff\xfe"


# refusals


BROKEN = [
    (b"", "cannot be read as GGUF"),
    (b"GGML" + bytes(40), "does not start with 'GGUF'"),
    (b"GGUF", "its header is incomplete"),
    (header(version=1), "is GGUF version 1; versions .* are supported"),
    (header(version=0x03000000), "is GGUF version"),
    (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "it claims"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "it claims"),
    (header(struct.pack("<Q", 2**62) + b"key"), "its header is incomplete"),
    (header(entry("k", 99, b"")), "unknown value type 99"),
    (header(entry("k", 8, struct.pack("<Q", 2**63))), "its header is incomplete"),
    (header(entry("k", 9, struct.pack("<IQ", 4, 2**61))), "its header is incomplete"),
    (header(entry("k", 9, struct.pack("<IQ", 8, 9_000_000))), "its header is incomplete"),
    (header(entry("k", 9, struct.pack("<IQ", 0, 20_000_000) + bytes(64))), "is incomplete"),
    (header(entry("k", 9, struct.pack("<IQ", 9, 1) * 2000)), "4 deep|5 deep|is incomplete"),
    (header(entry("general.alignment", 4, bytes(4))), "its alignment is 0"),
    (header(entry("general.alignment", 8, string("x"))), "its alignment is 'x'"),
    (header(entry("general.alignment", 6, struct.pack("<f", 32.0))), "its alignment is 32.0"),
    (header(entry("general.alignment", 4, struct.pack("<I", 2**31))), "its alignment is"),
    (header(tensors=(tensor("w", (1,) * 9, 0, 0),)), "w has 9 dimensions"),
    (header(tensors=(tensor("w", (64,), 0, 0),)), "tensor w ends at byte"),
    (header(tensors=(tensor("w", (1,), 0, 2**63),)), "tensor w ends at byte"),
    (header(tensors=(tensor("w", (2**32, 2**32), 0, 0),)), "tensor w ends at byte"),
    (header(tensors=(tensor("w", (2**63, 2), 0, 0),)), "tensor w ends at byte"),
    (header(tensors=(tensor("w", (33, 2), 2, 0),)) + bytes(99), "do not consist of whole blocks"),
    (header(tensors=(tensor("w", (4,), 250, 0),)) + bytes(99), "has the unknown type 250"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_named(folder: Path, data: bytes, message: str) -> None:
    path = write(folder, data)
    with pytest.raises((IntegrityError, FormatRefused), match=message), little_memory():
        GgufFile(path)


def test_whole_file_is_read_to_its_end(folder: Path, whole: bytes) -> None:
    """If this test failed, the two tests below would prove nothing."""
    assert read_gguf(write(folder, whole)) is None


@given(data=st.data())
@settings(deadline=timedelta(seconds=10))
def test_file_cut_anywhere_is_refused(folder: Path, whole: bytes, data: Any) -> None:
    length = data.draw(st.integers(0, len(whole) - 1))
    # The writer pads the file to its alignment; without the padding it is still complete.
    cut = whole[:length]
    if whole.rstrip(b"\0")[: len(cut)] != cut or len(cut) < len(whole.rstrip(b"\0")):
        assert read_gguf(write(folder, cut)) is not None


@given(
    places=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@example(places=[(0.990234375, 4)])  # a name as long as the rest of the file
@settings(deadline=timedelta(seconds=10), max_examples=250)
def test_changed_headers_are_read_or_refused_and_nothing_else(
    folder: Path, whole: bytes, header_end: int, places: list[tuple[float, int]]
) -> None:
    changed = bytearray(whole)
    for place, value in places:
        changed[int(place * header_end)] = value
    read_gguf(write(folder, bytes(changed)))


KEYS = ("llama.block_count", "llama.attention.head_count", "llama.attention.head_count_kv",
        "llama.embedding_length", "llama.context_length", "llama.rope.freq_base",
        "llama.attention.key_length", "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.token_type", "tokenizer.ggml.model", "general.architecture")  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_values_of_the_wrong_kind_are_refused(folder: Path, whole: bytes, key: str) -> None:
    """Any value in place of a required one leads to a message instead of a traceback."""
    at = whole.index(string(key)) + len(string(key))
    (kind,) = struct.unpack_from("<I", whole, at)
    for other in (0, 1, 4, 5, 6, 7, 10, 12):
        if other != kind:
            changed = whole[:at] + struct.pack("<I", other) + whole[at + 4 :]
            read_gguf(write(folder, changed))
    for value in (0, 1, 3, 2**31, 2**32 - 1):
        changed = whole[: at + 4] + struct.pack("<I", value) + whole[at + 8 :]
        read_gguf(write(folder, changed))
