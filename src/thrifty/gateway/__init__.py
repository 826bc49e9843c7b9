"""The front door. A request goes through it one module a step:

bytes in -> authenticate -> admit -> cache -> route -> forward -> record -> bytes out
"""
