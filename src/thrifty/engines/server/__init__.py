"""An OpenAI-style server around one model: what the `openvino` and `echo` engines have in common.

A backend turns token ids into token ids. Everything that makes an API of it is here: requests,
chat templates, tools, detokenization, stop strings, streams, answers.
"""

HOST_VARIABLE = "THRIFTY_REPLICA_HOST"
"""The address that such a server listens on; loopback by default."""
KEY_VARIABLE = "THRIFTY_REPLICA_KEY"
"""The key that requests must carry. Beyond loopback there must be one."""
SERVED_VARIABLE = "THRIFTY_SERVED"
"""What a replica serves, as JSON, where a fleet elsewhere starts it."""
MODEL_VARIABLE = "THRIFTY_MODEL_SOURCE"
"""Where such a replica pulls its model from, if its store lacks it: a reference to a remote."""

ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", HOST_VARIABLE: "", KEY_VARIABLE: ""}
"""For the processes of such servers: each text is tokenized alone, and needs no pool of threads.
A fleet's own replicas stay on loopback, whatever the environment around them says."""
