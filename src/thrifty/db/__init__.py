"""Tables, connections, migrations. SQLite embedded, PostgreSQL beyond one machine.

Nothing on a request's path waits for this package: the gateway reads a routing table from it now
and then, and a writer thread puts rows in by batches.
"""

from thrifty.db.database import Database, open_database

__all__ = ["Database", "open_database"]
