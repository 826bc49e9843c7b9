"""One model in an AWS Lambda function: what the function's image holds, and the runtime in it.

AWS's own Python runtime client cannot stream answers, so this package speaks the Lambda Runtime API
itself. The function has no gateway: Lambda starts one environment for each request at a time, and
the runtime passes requests straight to the engine's server beside it.
"""
