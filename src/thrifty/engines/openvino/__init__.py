"""OpenVINO GenAI: the default engine on CPUs.

    adapter.py        what it can do, and how a replica is started
    prepare.py        from a checkpoint to OpenVINO IR, without PyTorch
    decoder_graph.py, encoder_graph.py, weights.py    the graphs that preparation writes
    __main__.py       a replica: the OpenAI-style server in front of a worker
    backend.py        the worker, as the server sees it
    start_child.py    starts it, before the server has imported what it needs
    worker.py         a process of its own that holds the model and does nothing but generate:
                      decoder_worker.py, encoder_worker.py
    messages.py       what goes between the two

Two processes for one replica, because a generation step holds Python's interpreter lock: with the
worker on its own, requests are read, tokenized and streamed while a step runs.
"""
