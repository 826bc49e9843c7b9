"""HTTP/1.1 for the request path: a server and a client on httptools.

Also what surrounds the server: routes, CORS, TLS, uploads to disk and a bridge to ASGI.
"""
