"""May this request go on, and when? The second step, one module for each question:

    check        is it a request that this deployment can answer?
    limits       is its key within its limits? (`counts` in this process, `shared_counts` in Redis,
                 `spend` in the database, `estimate` before the answer is there)
    slots        is there room at a replica? Who waits goes in a fair order (`fair_queue`)
    health       which replicas are better left alone?
    hedge        is a second replica asked, where the first is slow?

Policies are plain code over plain state, with a clock passed in.
"""
