"""The console: a page for people that shows and operates the service, at `/console`.

    assets    its files, from memory, compressed, under a path that changes with them
    pages     its routes, and signing in and out
    oidc      an identity provider: where to send people, and who came back
    oidc_pages  the two steps of that in the browser
    static/   the page itself: plain ES modules, and one bundle of libraries (`vendor.js`)

The page calls the same API as programs do. What it may do is decided there, by the role of the key;
what it shows of that is a courtesy.
"""
