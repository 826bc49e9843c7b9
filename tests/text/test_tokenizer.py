"""Tokenization, chat templates, and incremental decoding."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.artifacts.models import Llama
from tests.artifacts.vocabulary import PIECES, llama_metadata, make_gpt2_metadata
from thrifty.artifacts.gguf_file import GgufFile
from thrifty.artifacts.gguf_tokenizer import build_tokenizer
from thrifty.engines.echo.backend import make_tokenizer
from thrifty.errors import FormatRefused
from thrifty.openai.errors import WireError
from thrifty.text.chat_template import ChatTemplate
from thrifty.text.tokenizer import IncrementalText, TextTokenizer

BYTES = make_tokenizer()
END = 256
BROKEN = "\ufffd"

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "m.gguf"
    Llama(layers=1).write_gguf(path, extra=make_gpt2_metadata(400))
    return TextTokenizer(build_tokenizer(GgufFile(path)), CHATML)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    Llama(layers=1).write_gguf(path, extra=llama_metadata(add_bos_token=False))
    return TextTokenizer(build_tokenizer(GgufFile(path)), None)


def run(tokenizer: TextTokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    """The text from `ids`, fed one by one, and whether a stop string ended it."""
    text = IncrementalText(tokenizer, stops)
    out = ""
    for token_id in ids:
        out += text.feed(token_id)
        if text.stopped:
            return out, True
    return out + text.flush(), False


# incremental text

TEXT = st.text(max_size=40).map(lambda text: text.replace(BROKEN, ""))
MIXED = st.lists(st.sampled_from(["The quick", " brown", "🦙", "é", "東京", "\n\n", "e\u0301", " ", "12"]),
                 max_size=15).map("".join)  # fmt: skip


@given(text=TEXT)
def test_text_in_bytes_comes_out_whole(text: str) -> None:
    assert run(BYTES, list(text.encode())) == (text, False)


@given(text=st.one_of(TEXT, MIXED))
def test_text_in_byte_level_tokens_comes_out_whole(byte_level: TextTokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert run(byte_level, ids) == (byte_level.decode(ids), False)


@given(text=st.text(alphabet="abcl \nü🦙", max_size=30))
def test_text_in_sentencepieces_comes_out_whole(sentencepiece: TextTokenizer, text: str) -> None:
    assert run(sentencepiece, sentencepiece.encode(text)) == (text, False)


@given(data=st.binary(max_size=30))
def test_any_bytes_come_out_as_the_library_decodes_them(data: bytes) -> None:
    """An incomplete character at the very end is dropped: more bytes might have completed it."""
    out, _ = run(BYTES, list(data))
    assert out == data.decode("utf-8", "replace").rstrip(BROKEN)


@given(ids=st.lists(st.integers(0, 399), max_size=12))
def test_any_tokens_come_out_as_the_library_decodes_them(
    byte_level: TextTokenizer, ids: list[int]
) -> None:
    out, _ = run(byte_level, ids)
    assert out.rstrip(BROKEN) == byte_level.decode(ids).rstrip(BROKEN)


LETTERS = [i for i in range(259, len(PIECES)) if "▁" not in PIECES[i]]
BROKEN_BYTES = [3 + value for value in (0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF, 0x80)]


@given(ids=st.lists(st.sampled_from([*LETTERS, *BROKEN_BYTES]), max_size=12))
def test_broken_bytes_among_sentencepieces_lose_no_letters(
    sentencepiece: TextTokenizer, ids: list[int]
) -> None:
    out, _ = run(sentencepiece, ids)
    letters = "".join(PIECES[i] for i in ids if i >= 259)
    assert "".join(c for c in out if c.isascii()) == letters


@given(text=MIXED, at=st.integers(0, 40))
def test_what_is_out_is_never_taken_back(byte_level: TextTokenizer, text: str, at: int) -> None:
    ids = byte_level.encode(text)
    growing = IncrementalText(byte_level, ())
    out = "".join(growing.feed(i) for i in ids[:at])
    assert text.startswith(out)
    # Only a character whose bytes are incomplete is held back.
    known = byte_level.decode(ids[:at])
    assert out == known or known.endswith(BROKEN)


def test_special_tokens_are_not_text() -> None:
    assert run(BYTES, [65, END, 66]) == ("AB", False)


def test_character_cut_by_the_end_of_the_answer_is_left_out() -> None:
    llama = "🦙".encode()
    text = IncrementalText(BYTES, ())
    assert "".join(text.feed(i) for i in b"a " + llama[:3]) == "a "
    assert text.flush() == ""
    assert text.flush() == ""


# stop strings


def stop_slowly(
    tokenizer: TextTokenizer, ids: list[int], stops: tuple[str, ...]
) -> tuple[str, bool]:
    """A reference implementation that decodes everything again for each token."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count]).rstrip(BROKEN)
        found = [text.find(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], True
    return tokenizer.decode(ids).rstrip(BROKEN), False


STOPS = st.lists(st.text(alphabet="abcé\n", min_size=1, max_size=4), min_size=1, max_size=3).map(
    tuple
)


@given(text=st.text(alphabet="abcé\n", max_size=30), stops=STOPS)
def test_stop_strings_end_the_text_before_them(text: str, stops: tuple[str, ...]) -> None:
    ids = list(text.encode())
    assert run(BYTES, ids, stops) == stop_slowly(BYTES, ids, stops)


@given(
    text=st.lists(st.sampled_from(["The quick", " brown", "lazy", " dog", ".", "\n", "é"]), max_size=12)
    .map("".join),
    stops=st.lists(st.sampled_from(["own", "quick b", "lazy dog", "\n", ".é", "zy"]), min_size=1,
                   max_size=3).map(tuple),
)  # fmt: skip
def test_stop_strings_across_the_borders_of_tokens_never_leak(
    byte_level: TextTokenizer, text: str, stops: tuple[str, ...]
) -> None:
    ids = byte_level.encode(text)
    assert run(byte_level, ids, stops) == stop_slowly(byte_level, ids, stops)


@given(
    text=st.text(alphabet="ab", max_size=20), stop=st.text(alphabet="ab", min_size=1, max_size=4)
)
def test_no_more_is_held_back_than_might_begin_a_stop(text: str, stop: str) -> None:
    growing = IncrementalText(BYTES, (stop,))
    out = ""
    for at, character in enumerate(text, start=1):
        out += growing.feed(ord(character))
        if growing.stopped:
            return
        held = text[len(out) : at]
        assert stop.startswith(held)
        assert len(held) < len(stop)
    assert out + growing.flush() == text


def test_held_text_comes_out_at_the_end() -> None:
    growing = IncrementalText(BYTES, ("STOP",))
    assert [growing.feed(c) for c in b"xSTO"] == ["x", "", "", ""]
    assert growing.flush() == "STO"
    assert not growing.stopped


def test_stops_are_not_looked_for_before_the_minimum() -> None:
    growing = IncrementalText(BYTES, ("b",))
    assert [growing.feed(c, check_stops=False) for c in b"abc"] == ["a", "b", "c"]
    assert not growing.stopped
    assert growing.feed(ord("b")) == ""
    assert growing.stopped


# tokenizers and templates


def test_tokenizer_of_a_folder_is_loaded_with_its_template(tmp_path: Path) -> None:
    BYTES.tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "<s>hi</s>"
    assert tokenizer.encode("hi") == [104, 105]
    assert tokenizer.vocabulary_size == 257
    (tmp_path / "chat_template.jinja").write_text("file: {{ messages[0].content }}")
    assert TextTokenizer.load(tmp_path).render_chat([{"content": "hi"}]) == "file: hi"


def test_default_of_several_templates_is_taken(tmp_path: Path) -> None:
    BYTES.tokenizer.save(str(tmp_path / "tokenizer.json"))
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "plain"},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert TextTokenizer.load(tmp_path).render_chat([]) == "plain"


def test_limits_that_were_saved_with_a_tokenizer_do_not_cut_prompts(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(BYTES.tokenizer.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer.load(tmp_path).encode("hello") == list(b"hello")


def with_template(template: str) -> TextTokenizer:
    return TextTokenizer(make_tokenizer().tokenizer, template)


def test_chatml_is_what_it_should_be() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    start = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    tokenizer = with_template(CHATML)
    assert tokenizer.render_chat(messages) == f"{start}<|im_start|>assistant\n"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == start


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "é<"}]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for m in messages %}{% if 1 %}{% break %}{% endif %}x{% endfor %}", ""),
        ("a\n{%- generation %}b{% endgeneration %}", "ab"),
        ("  {% if 1 %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ key }}{{ tools is none }}", "extraTrue"),
    ],
)  # fmt: skip
def test_templates_have_the_helpers_that_transformers_gives(template: str, expected: str) -> None:
    messages = [{"role": "user", "content": "é<"}]
    assert ChatTemplate(template, {}).render(messages, extra={"key": "extra"}) == expected


def test_date_of_today_can_be_asked_for() -> None:
    assert with_template("{{ strftime_now('%Y') }}").render_chat([]).startswith("20")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "messages: roles must alternate"),
        ("{{ messages[5].content.x }}", "chat template rejects these messages"),
        ("{{ 1 / 0 }}", "chat template rejects these messages: division by zero"),
        ("{{ messages + 1 }}", "chat template rejects these messages"),
        ("{{ range(999999999) | list }}", "chat template rejects these messages"),
        ("{{ ''.__class__.__mro__ }}", "chat template rejects these messages"),
        ("{{ messages.append(1) }}", "chat template rejects these messages"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template rejects"),
    ],
)
def test_template_that_fails_is_the_fault_of_the_messages(template: str, message: str) -> None:
    with pytest.raises(WireError, match=message) as refusal:
        with_template(template).render_chat([{"role": "user", "content": "x"}])
    assert (refusal.value.status, refusal.value.code) == (400, "chat_template_error")


def test_model_without_a_template_says_what_to_do() -> None:
    with pytest.raises(WireError, match=r"no chat template; use /v1/completions") as refusal:
        TextTokenizer(make_tokenizer().tokenizer, None).render_chat([])
    assert refusal.value.code == "no_chat_template"


def test_text_that_is_no_template_is_refused() -> None:
    with pytest.raises(FormatRefused, match=r"chat template cannot be compiled: .*endfor"):
        with_template("{% for m in messages %}")


# truncation and bounds


@pytest.mark.parametrize("keep_end", [True, False])
def test_truncated_text_keeps_the_special_tokens_around_it(keep_end: bool) -> None:
    inner = make_tokenizer().tokenizer
    inner.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", END)]
    )
    tokenizer = TextTokenizer(inner, None)
    assert tokenizer.special_count == 2
    assert tokenizer.encode("hello") == [END, *b"hello", END]
    for most in range(2, 9):
        kept = b"hello"[max(0, 7 - most) :] if keep_end else b"hello"[: most - 2]
        ids = tokenizer.encode_truncated("hello", most, keep_end=keep_end)
        assert ids == [END, *kept, END]


@pytest.mark.parametrize("keep_end", [True, False])
@pytest.mark.parametrize("between", [" ", "\n", "", ", "])
def test_long_text_is_cut_before_it_is_tokenized(
    byte_level: TextTokenizer, sentencepiece: TextTokenizer, between: str, *, keep_end: bool
) -> None:
    text = between.join(["the quick brown fox", "jumps over", "11 lazy", "東京"] * 5000)
    for tokenizer in (byte_level, sentencepiece, BYTES):
        part = tokenizer.cut_text(text, 50, keep_end=keep_end)
        assert len(part) < len(text) / 20
        assert text.endswith(part) if keep_end else text.startswith(part)
        kept = tokenizer.encode_truncated(text, 50, keep_end=keep_end)
        whole = tokenizer.encode(text)
        assert kept == (whole[-50:] if keep_end else whole[:50])
        assert tokenizer.cut_text(text[:2000], 500, keep_end=keep_end) == text[:2000]


def test_tokenizing_lets_other_threads_run() -> None:
    """Ten megabytes take about a second; a thread that wants to run meanwhile does."""
    ran, done = 0, threading.Event()

    def count() -> None:
        nonlocal ran
        while not done.is_set():
            ran += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    ran_before = ran
    BYTES.encode("lorem ipsum " * 100_000)
    ran_after = ran
    done.set()
    thread.join()
    assert ran_after - ran_before > 20
