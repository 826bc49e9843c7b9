"""What people think of answers: taken in over HTTP, listed, and turned into training rows.

    parse        the JSON object of `POST /v1/feedback`
    rates        how much one user and one tenant may send
    pages        the endpoints
    inbox        what operators do with it: triage, export over HTTP
    send         a helper for Python programs
    feedback.js  a helper for web pages

What is stored, and how often one user's feedback counts, is in `db/feedback`.
"""
