"""Merges the metrics of all gateway workers into one page, whichever worker is asked.

With several workers each series gets the label `worker`, so that counters remain counters.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence

from thrifty.db.fleet import GatewayRow
from thrifty.http.client import HttpClient, TransportError

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
_LABELLED = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)\{")
_PLAIN = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)")


async def merge_metrics(
    own: bytes, gateways: Sequence[GatewayRow], headers: Mapping[bytes, bytes]
) -> bytes:
    """This worker's page merged with those of the others; unchanged if it is the only worker. A
    worker that does not answer is left out.
    """
    if len(gateways) < 2:
        return own
    client = HttpClient()
    key = headers.get(b"authorization")
    sent = b"authorization: %b\r\n" % key if key is not None else b""

    async def read(gateway: GatewayRow) -> tuple[str, bytes]:
        if gateway.pid == os.getpid():
            return gateway.id, own
        try:
            url = f"{gateway.url}/metrics?worker=self"
            status, page = await client.fetch(url, headers=sent, timeout_s=TIMEOUT_S)
        except TransportError as error:
            log.warning("the metrics of %s cannot be read: %s", gateway.id, error)
            return gateway.id, b""
        return gateway.id, page if status == 200 else b""

    try:
        pages = dict(await asyncio.gather(*(read(gateway) for gateway in gateways)))
    finally:
        client.close()
    if own not in pages.values():
        # The table does not list this worker: it has just started or is about to stop.
        pages[f"pid-{os.getpid()}"] = own
    return merge_pages(pages)


def merge_pages(pages: Mapping[str, bytes]) -> bytes:
    """Merge pages in Prometheus's text format; each sample is labelled with its page's name."""
    headers: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for name, page in pages.items():
        label = rb"\1{worker=" + b'"%b"' % name.encode()
        family = b""
        for line in page.splitlines():
            if line.startswith(b"# HELP "):
                family = line.split(b" ", 3)[2]
                samples.setdefault(family, [])
                if family not in headers:
                    headers[family] = [line]
            elif line.startswith(b"# TYPE "):
                if len(headers[family]) < 2:
                    headers[family].append(line)
            elif line:
                labelled = _LABELLED.sub(label + b",", line, count=1)
                if labelled == line:
                    labelled = _PLAIN.sub(label + b"}", line, count=1)
                samples[family].append(labelled)
    lines = [line for family in headers for line in (*headers[family], *samples[family])]
    return b"\n".join(lines) + b"\n"
