"""Chat templates with the habits of those that models come with, written for these tests."""

from __future__ import annotations

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ALTERNATING = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}"
    "{% endfor %}"
)
"""As Mistral's first: no system role, no tools, user and assistant in turns."""

NINE = (
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% set ns = namespace(index=0) %}"
    "{% for m in rest %}{% if not (m.role == 'tool' or m.tool_calls is defined) %}"
    "{% if (m.role == 'user') != (ns.index % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{% if tools is not none %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}[TOOL_CALLS] "
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids must have nine characters') }}{% endif %}"
    "{{ c.function | tojson }}#{{ c.id }}{% endfor %}</s>"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids must have nine characters') }}{% endif %}"
    "[TOOL_RESULTS] {{ m.content }}#{{ m.tool_call_id }}"
    "{% else %}{{ raise_exception('a system message comes first') }}{% endif %}"
    "{% endfor %}"
)
"""As Mistral's later ones: one system message, tools, ids of nine characters."""

HERMES = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls %}"
    '<tool_call>{"name": "{{ c.function.name }}", "arguments": '
    "{% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""As Qwen's: it takes everything, and thinks."""

ENCODING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}\n{% endfor %}{{ tools | tojson }}"
)
"""Writes whatever arguments are as JSON."""

JOINING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name + ' ' + c.function.arguments }}"
    "{% endfor %}\n{% endfor %}{{ tools | tojson }}"
)
"""As DeepSeek's: arguments must be text."""

ITEMS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %}<{{ key }}>{{ value }}{% endfor %}"
    "{% endfor %}\n{% endfor %}{{ tools | tojson }}"
)
"""As Qwen's coders: arguments must be an object."""

SINGLE = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|eot_id|>{% endfor %}"
    "{{ tools | tojson }}"
)
"""As Llama's: one call at a time."""

IGNORING = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
"""Drops what it has no place for, without a word."""

NEEDS_USER = (
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length == 0 %}"
    "{{ raise_exception('No user query found') }}{% endif %}" + CHATML
)
