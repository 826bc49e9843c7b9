"""Admission: may this request proceed?

    authenticate  the API key of a request
    check         validation of the body; the deployment and version that it goes to
    limits        limits of the key (`counts` in this process, `shared_counts` in Redis, `spend` in
                  the database)

Policies are plain code over plain state, with a clock passed in.
"""
