"""Kubernetes' API as the fleet and `thrifty deploy` use it: a client, watches, a lease; names and pods.

config.py    where the API server is and who we are: in a cluster, or by a kubeconfig
client.py    requests to it, and its errors
watch.py     a list that is kept current by watching
lease.py     which of several controllers acts
names.py     names that every platform takes
pods.py      pods, labels and metadata that all our objects share
"""
