"""Postal addresses are found by their form, to their ends, and little else is taken for one."""

from __future__ import annotations

import time

import pytest

from thrifty.observe.names.addresses import find_addresses


def found(text: str, *places: str) -> list[str]:
    spans = sorted((text.index(place), text.index(place) + len(place)) for place in places)
    return [text[begin:end] for begin, end in find_addresses(text, spans)]


@pytest.mark.parametrize(
    "address",
    [
        "1234 Main St Apt 5, Springfield, IL 62701",
        "1600 Broadway, New York, NY 10019-1234",
        "00432 Davenport Estates Suite 123\nNew Philip, NC 12345",
        "742 Evergreen Terrace",
        "12 N. 5th Avenue NW",
        "PSC 1234, Box 5678\nAPO AP 12345",
        "USNS Walker\nFPO AE 01234",
        "P.O. Box 1234, Dallas, TX 75201",
        "Springfield, IL 62701",
        "Flat 3, 10 Downing Street, London SW1A 2AA",
        "Studio 30\nBailey Coves\nEast Janeport\nM2T 5PQ",
        "100 Queen Street, Ottawa, ON K1P 1J9",
        "8 Pitt Street, Sydney NSW 2000",
        "Hauptstraße 12a, 10115 Berlin",
        "Jobst-Steinberg-Straße 7/9\n95896 Husum",
        "12, rue de la Paix, 75002 Paris",
        "Via Alfieri, 149\n20146, Milano (MI)",
        "Calle Mayor 5, 28013 Madrid",
        "Suzestraat 68\n5078 IV Hoogvliet",
        "ul. Harcerska 64/68\n50-588 Starogard",
    ],
)
def test_an_address_is_found_as_a_whole(address: str) -> None:
    assert found(f"Please send it to {address}.") == [address]
    assert found(f"({address})") == [address]


def test_what_follows_a_street_belongs_to_it() -> None:
    text = "I live at 5 Elm Road, Aberystwyth, Wales, and work at 9 Oak Lane in town."
    assert found(text, "Aberystwyth", "Wales") == [
        "5 Elm Road, Aberystwyth, Wales", "9 Oak Lane",
    ]  # fmt: skip
    quoted = "> 57172 Watkins Village\n> Suite 924\n> Lake Jesse, OH 14908"
    assert found(quoted) == [quoted.removeprefix("> ")]


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France? Paris, in 2024.",
        "In 1984 Orwell wrote about 3 Great Powers.",
        "Use Spring 5 with Java 17, version 1.2.3 of 12 May 2020.",
        "The 5 Best Places, and 200 National Parks, 10 New Lakes",
        "On 2 March 2020, John and 3 Other People met in Oslo.",
        "It costs 12345 Euro for 20 Users.",
    ],
)
def test_other_numbers_are_no_addresses(text: str) -> None:
    assert found(text, *[one for one in ("France", "Paris", "Oslo") if one in text]) == []


@pytest.mark.parametrize("text", ["Aa " * 9999, "12 Aa Bb, " * 999, "1 " * 9999, "12 Aa\n" * 999])
def test_the_time_does_not_explode(text: str) -> None:
    began_s = time.process_time()
    find_addresses(text, [])
    assert time.process_time() - began_s < 5
