"""In-memory state of one gateway worker: deployments, versions, replicas, load and health."""
