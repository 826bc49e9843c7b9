"""From a spec to what other platforms run: manifests, charts and templates, as plain text.

Nothing here reaches a platform. A target is a function from a service and its options to files; the
same spec and options give the same bytes. What a target cannot do is refused with the next step.
"""
