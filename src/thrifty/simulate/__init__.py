"""What a fleet of replicas would do with recorded traffic: the router and the autoscaler as they
run, over replicas that exist in the simulation alone.
"""
