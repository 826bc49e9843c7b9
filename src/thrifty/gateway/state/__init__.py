"""What one worker knows: deployments, versions, replicas, their load, health and speed."""
