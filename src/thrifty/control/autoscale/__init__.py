"""How many replicas each version needs: a policy as plain code over plain state.

`policy.Autoscaler.step` takes the time and what was seen of each version, and says how many replicas
of each should run, and why. It reads no clock, file or database, so that the control loop, a
simulation of a thousand replicas and property tests run the same code. docs/autoscaling.md explains
it with its formulas.

    types       what goes in and what comes out
    settings    the constants, each with its reason
    model       queueing: what latencies to expect of N replicas
    fit         how fast a replica is at a given load, learned from answers
    arrivals    the rate of requests: level, bursts, trend
    policy      the decision for each version
    sharing     several versions within one capacity
    meter       from gateways' rows to what the policy takes
"""
