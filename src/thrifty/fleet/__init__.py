"""How many copies, where: local processes today; Ray and Kubernetes have their place here.

plan.py             from a spec to what a replica serves: fetch, prepare, check
local.py            replicas as supervised processes on this machine
external.py         replicas that others run, watched
process.py          one process: start, watch, stop, adopt
cores.py            which cores each replica gets
gateways.py         the gateway's workers
ports.py            the port that those share
controller.py       makes the world match the spec, and writes what is into the database
controller_note.py  where it runs and what it uses, for other commands
"""
