"""What crosses HTTP: a server, a client, server-sent events and the OpenAI dialect.

The server and the client are our own because they are the request path: on top of httptools and
uvloop they add less than a third of what a general framework and client add to a request
(`benchmarks/gateway_overhead.py` measures it). They do HTTP/1.1 and nothing else.
"""
