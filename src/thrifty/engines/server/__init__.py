"""An OpenAI-style server around one model: what the `openvino` and `echo` engines have in common.

A backend turns token ids into token ids. Everything that makes an API of it is here: requests,
chat templates, tools, detokenization, stop strings, streams, answers.
"""

ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false"}
"""For the processes of such servers: each text is tokenized alone, and needs no pool of threads."""
