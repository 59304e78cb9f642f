"""What is asked of PostgreSQL about who locks what."""

from __future__ import annotations

from typing import Final

#: The tables of these names, and their partitions, as `tree`.
TREE: Final = """RECURSIVE tree(oid) AS (
    SELECT to_regclass(name)::oid FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL
    UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
)"""

#: An autovacuum makes room by itself, unless it is there to prevent a wraparound.
HOLDERS: Final = f"""
WITH {TREE}, held AS (
    SELECT pid, virtualtransaction FROM pg_locks JOIN tree ON relation = tree.oid
    WHERE locktype = 'relation' AND granted AND pid IS DISTINCT FROM pg_backend_pid()
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), old(id, who, began, query, idle) AS (
    SELECT pid::text, concat(coalesce(usename, backend_type), '@',
               coalesce(client_hostname, host(client_addr), 'localhost'), ' (' || nullif(application_name, '') || ')'),
           xact_start, query, state LIKE 'idle in transaction%%'
    FROM pg_stat_activity WHERE pid IN (SELECT pid FROM held)
      AND (backend_type <> 'autovacuum worker' OR query LIKE '%%to prevent wraparound%%')
    UNION ALL
    SELECT gid, concat(owner, ', prepared transaction'), prepared, '', true
    FROM pg_prepared_xacts JOIN pg_locks ON locktype = 'transactionid' AND transactionid = transaction AND pid IS NULL
    WHERE virtualtransaction IN (SELECT virtualtransaction FROM held WHERE pid IS NULL)
)
SELECT id, who, extract(epoch FROM clock_timestamp() - began), query, idle FROM old
WHERE began < clock_timestamp() - make_interval(secs => %s) ORDER BY began
"""

#: The index of this name on this table if it is INVALID, and who is building it.
INVALID: Final = """
SELECT i.indexrelid::regclass::text, p.pid
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid
WHERE c.relname = %s AND i.indrelid = to_regclass(%s) AND NOT i.indisvalid
"""
