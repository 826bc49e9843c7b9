"""One turn of the loop, with pretend users whose preferences are hidden: `make demo`.

sizes     every number that says how much is done
people    what users like, and the judge; the only place that knows it
crowd     users who ask, press "again" and give thumbs, over HTTP, and what became of each request
service   a service in a home of its own, and the commands that act on it
acts      what happens, in its order; each act measures what it claims
"""
