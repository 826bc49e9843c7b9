"""The gateway's port: free ones, taken ones, and several listeners on one."""

from __future__ import annotations

import os
import socket

import pytest

from thrifty.errors import FleetError
from thrifty.fleet.ports import choose_port, find_free_port, open_listeners


def test_a_free_port_is_found_and_may_be_listened_on_several_times() -> None:
    port = choose_port("127.0.0.1", 0, ())
    listeners = open_listeners("127.0.0.1", port, 3)
    try:
        assert {listener.getsockname()[1] for listener in listeners} == {port}
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            assert client.getpeername()[1] == port
    finally:
        for listener in listeners:
            listener.close()


def test_a_port_that_somebody_has_is_refused_with_their_name_unless_they_are_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            FleetError,
            match=rf"cannot listen on 127.0.0.1:{port}: .* \(taken by pid {os.getpid()}, .*\); "
            r"choose another port \(--port\)",
        ):
            choose_port("127.0.0.1", port, {1})
        assert choose_port("127.0.0.1", port, {1, os.getpid()}) == port


def test_the_port_of_before_is_found_again_unless_it_is_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert find_free_port(port) not in (0, port)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            taken.accept()[0].close()
    assert find_free_port(port) == port


def test_an_address_that_is_not_here_is_refused() -> None:
    with pytest.raises(FleetError, match=r"cannot listen on 192\.0\.2\.1:0"):
        choose_port("192.0.2.1", 0, ())
