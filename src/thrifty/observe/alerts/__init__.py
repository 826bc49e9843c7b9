"""Alerts: what is wrong with a service, told once to whoever asked.

settings   what is watched, and who is told, as plain data
counts     judged, failed and slow requests by minute, from the request log
findings   what is wrong now: burn rates, crash loops, budgets, feedback
book       which alerts are open, whom to tell what: deduplicated, repeated, silenced
targets    a webhook, Slack's format, mail, the log
watch      one look at all of it
"""
