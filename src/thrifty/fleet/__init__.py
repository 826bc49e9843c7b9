"""Where replicas run: processes on this machine, pods in a Kubernetes cluster, actors on a Ray cluster,
and servers that others run.

base.py             what a fleet is: `apply` what is desired, `observe` what is there
local.py            the fleet on this machine
local_replica.py    one replica as a supervised process
external.py         servers that others run, watched
kubernetes.py       the fleet in a cluster: who goes, who acts, what is seen
kubernetes_objects.py   the Deployment of a set of replicas
kubernetes_writer.py    writes Deployments, and the number of replicas
kubernetes_replica.py   one replica in a cluster
kubernetes_pod.py       what a pod says of its replica
ray.py              the fleet on a Ray cluster: who goes, who acts, what is seen
ray_replica.py      one replica on Ray, and its attempts
ray_link.py         the controller's end of the process that speaks with Ray
ray_bridge.py       that process
ray_actor.py        the actor on a node, which owns an engine process
ray_cores.py        which cores of its node an engine on Ray gets
ray_settings.py     what a replica asks Ray for
memory.py           how much memory a replica on another machine gets
idle.py             waiting until a replica on another machine works on nothing
owned_child.py      a process that ends with the one that started it
process.py          one process: start, watch, stop, adopt
cores.py            which cores each replica gets
ports.py            free ports, and the one that the gateway's workers share
plan.py             from a spec to what a replica serves: fetch, prepare, check
controller_note.py  where the controller runs and what it uses, for other commands
"""
