"""What answers cost: who held the machine, what of it was work, and what was saved.

amounts   money as whole numbers, and how it is divided so that nothing is lost
held      hours of replicas: held, worked, and what they cost
report    the cost of requests by version, tenant, day or deployment
savings   what caches, compression, batching and scaling to zero saved, each against its baseline
forecast  budgets, and what a month will come to
"""
