"""Where replicas run: processes on this machine, and servers that others run; Ray and Kubernetes have
their place here.

base.py             what a fleet is: `apply` what is desired, `observe` what is there
local.py            the fleet on this machine
local_replica.py    one replica as a supervised process
external.py         servers that others run, watched
process.py          one process: start, watch, stop, adopt
cores.py            which cores each replica gets
ports.py            free ports, and the one that the gateway's workers share
plan.py             from a spec to what a replica serves: fetch, prepare, check
controller_note.py  where the controller runs and what it uses, for other commands
"""
