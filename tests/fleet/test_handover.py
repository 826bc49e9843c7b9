"""Listening sockets handed from one process to another with what waits in them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from thrifty.control.gateways import GatewayWorkers
from thrifty.fleet.handover import ListenerOffer, take_listeners
from thrifty.fleet.ports import open_listeners
from thrifty.home import Home, make_private_folder


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


async def test_sockets_beside_taken_ones_get_no_connections_yet(home: Home) -> None:
    """Their workers are only to be started: what the kernel sent there would wait, or be reset."""
    make_private_folder(home.run)
    ours = open_listeners("127.0.0.1", 0, 1)
    offer = ListenerOffer(home.listeners_of("gateway-0"), [ours[0].fileno()])
    host, port = ours[0].getsockname()

    async def ignore(_: object) -> None: ...

    workers = GatewayWorkers(home, host, port, ignore, ignore, lambda: None)
    opened = await asyncio.to_thread(workers._open_sockets, 3, ["gateway-0"])
    assert {one.getsockname() for one in opened} == {(host, port)}
    listens = [one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in opened]
    assert listens == [1, 0, 0]
    offer.close()
    for one in (*ours, *opened):
        one.close()


def test_no_process_offers_listeners_where_gateways_reach_the_recorder(home: Home) -> None:
    assert home.listeners_of("recorder") != home.recorder_socket
