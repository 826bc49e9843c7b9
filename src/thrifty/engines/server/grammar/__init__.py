"""Grammars for bound answers: JSON schemas and patterns become rules that an engine can enforce.

Nothing here knows an engine's own reading of JSON schemas. A schema is taken apart by the rules of
Draft 2020-12 (`schema`), and written as a context-free grammar (`values`, `objects`, `strings`,
`numbers`) whose every sentence is a valid answer. What cannot be written so is refused by name.
"""
