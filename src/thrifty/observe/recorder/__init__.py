"""The recorder: one process for each service that writes what gateway workers saw.

    messages      what goes over the socket between a worker and the recorder
    line          a worker's end: it hands rows, traces and metrics over, and never waits
    recorder      the other end: rows into the database, texts redacted, telemetry to a collector
    sockets       the socket in the home, however long its path is
    process       the process

A worker spends microseconds on a request here, because its event loop is what all requests wait
for. It keeps the rows that it handed over until they are written, so that a recorder that is killed
costs none: the next one gets them again, and a row's id tells whether it was written before.
"""
