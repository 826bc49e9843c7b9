"""Tables, connections and migrations: SQLite embedded, PostgreSQL for more than one machine.

Nothing on a request's path waits for this package: the gateway periodically reads a routing table
from it, and the recorder inserts rows in batches.
"""

from thrifty.db.database import Database, open_database

__all__ = ["Database", "open_database"]
