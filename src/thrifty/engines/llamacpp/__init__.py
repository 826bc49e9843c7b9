"""The `llamacpp` engine: llama.cpp's own server, for any GGUF that llama.cpp can load.

A replica is two processes: our server (`engines/server`), which clients and gateways talk to, and
llama.cpp's, to which it sends tokens and from which it reads tokens. llama.cpp comes in the wheel
`xllamacpp`, in an environment of its own that is made on first use.
"""
