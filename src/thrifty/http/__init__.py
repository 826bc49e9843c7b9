"""HTTP/1.1 for the request path: a server and a client on httptools, and uploads that go to disk."""
