"""Listening sockets handed from one process to another with what waits in them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from thrifty.fleet.handover import ListenerOffer, take_listeners
from thrifty.fleet.ports import open_listeners


async def test_what_waits_in_a_taken_socket_is_not_reset(tmp_path: Path) -> None:
    path = tmp_path / "gateway-0.sock"
    ours = open_listeners("127.0.0.1", 0, 2)
    offer = ListenerOffer(path, [one.fileno() for one in ours])
    clients = [socket.create_connection(ours[0].getsockname()) for _ in range(20)]
    taken = await asyncio.to_thread(take_listeners, path)
    assert [one.getsockname() for one in taken] == [one.getsockname() for one in ours]
    offer.close()
    for one in ours:
        one.close()
    accepted = 0
    for one in taken:
        while accepted < len(clients):
            try:
                connected, _ = one.accept()
            except BlockingIOError:
                break
            connected.sendall(b"!")
            connected.close()
            accepted += 1
        one.close()
    assert accepted == len(clients)
    for client in clients:
        with client:
            assert client.recv(1) == b"!"


async def test_a_worker_that_is_gone_offers_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway-0.sock"
    assert take_listeners(path) == []
    ours = open_listeners("127.0.0.1", 0, 1)
    ListenerOffer(path, [one.fileno() for one in ours]).close()
    assert path.exists()
    assert take_listeners(path) == []
    ours[0].close()


async def test_one_that_hangs_up_at_once_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway-0.sock"
    ours = open_listeners("127.0.0.1", 0, 1)
    offer = ListenerOffer(path, [one.fileno() for one in ours])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    taken = await asyncio.to_thread(take_listeners, path)
    assert len(taken) == 1
    offer.close()
    for one in (*ours, *taken):
        one.close()
