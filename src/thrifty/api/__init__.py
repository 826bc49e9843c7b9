"""The management API: an ASGI application over plain services, and its table of routes.

`table` says which routes there are and who may call them; `models` and `services` say what goes in
and out; `app` makes the application; `page` shows it to people. Who calls is checked by the server
in front (its keys, and `http.same_origin`), which passes the name on as `scope["state"]["caller"]`.
"""
