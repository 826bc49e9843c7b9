"""Batches: files of requests that are worked off with the capacity that interactive traffic leaves.

    api          /v1/files and /v1/batches, as OpenAI has them: who asks, and for which page
    files_api    the pages about files
    batches_api  the pages about batches
    api_parts    what both share: parameters, lists, refusals
    storage      the contents of files, in THRIFTY_HOME/files
    lines        what a line asks for, and the record that answers it
    results      the files that records are appended to, read back after a crash
    governor     how many lines may be in flight at a replica
    dispatch     lines on their way to replicas, and back into the queue when they must yield
    job          one batch, from its input file to its end
    runner       which gateway worker runs batches, and which batches there are
    client       a batch run from the command line

A line takes the path that a client's request takes, from `admit` on. One gateway worker at a time
runs batches; a lease in the database and a lock on a file say which.
"""
