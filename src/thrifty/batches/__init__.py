"""Batches: files of requests that run on the capacity left by interactive traffic.

    api          the routes /v1/files and /v1/batches of the OpenAI API
    files_api    the handlers for files
    batches_api  the handlers for batches
    api_parts    shared by both: parameters, lists, errors
    storage      the contents of files, in THRIFTY_HOME/files
    lines        parses input lines and makes the records that answer them
    records      writes the records of a batch in groups
    results      the files that records are appended to, recovered after a crash
    governor     how many lines may be in flight at a replica
    dispatch     sends lines to replicas, and requeues them if they must yield
    job          one batch, from its input file to its end
    runner       which gateway worker runs batches, and which batches there are
    client       runs a batch from the command line

A line takes the same path as a client's request, from `admit` on. One gateway worker at a time runs
batches; a lease in the database and a lock on a file determine which.
"""
