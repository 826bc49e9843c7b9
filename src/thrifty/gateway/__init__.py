"""The gateway: the HTTP server that clients talk to. Each step of a request is one package:

bytes in -> authenticate -> admit -> cache -> route -> forward -> record -> bytes out
"""
