"""vLLM, in an environment of its own: a server of ours in front, vLLM's own behind a socket.

vLLM gets token ids and gives token ids (`/inference/v1/generate`). Everything that makes an API of
it is in `engines/server`, as for the other engines: templates, tools, schemas, log-probabilities,
errors. No other process can reach vLLM: its socket lies in a folder that only this user can enter.
"""
