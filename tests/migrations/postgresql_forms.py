"""Forms of PostgreSQL's DDL; what they should be is asked of the server itself."""

from __future__ import annotations

from typing import Final

#: The tables that the forms work on, with rows in them.
SETUP: Final = """
CREATE TABLE parent (id int PRIMARY KEY, n text);
INSERT INTO parent SELECT g, 'x' FROM generate_series(1,50) g;
CREATE TYPE mood AS ENUM ('a','b');
CREATE TABLE t (id serial PRIMARY KEY, a int, b int NOT NULL DEFAULT 1, s varchar(20), x text, p int REFERENCES
    parent, n numeric(10,2), ts timestamp, m mood, ck int CONSTRAINT t_ck_nn CHECK (ck IS NOT NULL), g int GENERATED
    ALWAYS AS (1+1) STORED);
INSERT INTO t (a,s,x,p,n,ts,m,ck) SELECT g,'s','x',g,g,now(),'a',1 FROM generate_series(1,50) g;
CREATE INDEX t_a ON t (a);
CREATE UNIQUE INDEX t_uq ON t (id, a);
CREATE TABLE other (id int NOT NULL, p int);
INSERT INTO other SELECT g,g FROM generate_series(1,50) g;
ALTER TABLE other ADD CONSTRAINT nv CHECK (p > 0) NOT VALID;
ALTER TABLE other ADD CONSTRAINT nvfk FOREIGN KEY (p) REFERENCES parent NOT VALID;
CREATE UNIQUE INDEX other_u ON other (id);
CREATE TABLE part (id int, a int) PARTITION BY RANGE (id);
CREATE TABLE part1 PARTITION OF part FOR VALUES FROM (0) TO (100);
INSERT INTO part SELECT g,g FROM generate_series(1,50) g;
CREATE TABLE part2 (id int, a int);
INSERT INTO part2 SELECT g+100,g FROM generate_series(1,50) g;
CREATE FUNCTION f() RETURNS trigger AS $$ BEGIN RETURN NEW; END $$ LANGUAGE plpgsql;
CREATE VIEW vw AS SELECT id FROM parent;
CREATE MATERIALIZED VIEW mv AS SELECT id FROM parent;
CREATE SEQUENCE sq;
CREATE DOMAIN dom AS int CHECK (value > 0);
"""

FORMS: Final = (
    "ALTER TABLE t ADD COLUMN c int",
    "ALTER TABLE t ADD COLUMN c int NOT NULL DEFAULT 5",
    "ALTER TABLE t ADD COLUMN c timestamptz DEFAULT now()",
    "ALTER TABLE t ADD COLUMN c uuid DEFAULT gen_random_uuid()",
    "ALTER TABLE t ADD COLUMN c float DEFAULT random()",
    "ALTER TABLE t ADD COLUMN c serial",
    "ALTER TABLE t ADD COLUMN c int GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE t ADD COLUMN c int GENERATED ALWAYS AS (a+1) STORED",
    "ALTER TABLE t ADD COLUMN c int UNIQUE",
    "ALTER TABLE t ADD COLUMN c int CHECK (c > 0)",
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5 CHECK (c > 0)",
    "ALTER TABLE t ADD COLUMN c int REFERENCES parent",
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5 REFERENCES parent",
    "ALTER TABLE t ADD COLUMN c dom",
    "ALTER TABLE t ADD COLUMN c text COLLATE \"C\" DEFAULT 'x'",
    "ALTER TABLE t DROP COLUMN a",
    "ALTER TABLE t DROP COLUMN x",
    "ALTER TABLE t RENAME COLUMN x TO y",
    "ALTER TABLE t RENAME TO t2",
    "ALTER TABLE t ALTER COLUMN a SET DEFAULT 3",
    "ALTER TABLE t ALTER COLUMN b DROP DEFAULT",
    "ALTER TABLE t ALTER COLUMN x SET NOT NULL",
    "ALTER TABLE t ALTER COLUMN ck SET NOT NULL",
    "ALTER TABLE t ALTER COLUMN b DROP NOT NULL",
    "ALTER TABLE t ALTER COLUMN b SET NOT NULL",
    "ALTER TABLE t ALTER COLUMN a TYPE bigint",
    "ALTER TABLE t ALTER COLUMN x TYPE varchar(100)",
    "ALTER TABLE t ALTER COLUMN s TYPE varchar(40)",
    "ALTER TABLE t ALTER COLUMN s TYPE varchar(10)",
    "ALTER TABLE t ALTER COLUMN s TYPE text",
    "ALTER TABLE t ALTER COLUMN s TYPE varchar",
    "ALTER TABLE t ALTER COLUMN n TYPE numeric(12,2)",
    "ALTER TABLE t ALTER COLUMN n TYPE numeric",
    "ALTER TABLE t ALTER COLUMN n TYPE numeric(12,4)",
    "ALTER TABLE t ALTER COLUMN ts TYPE timestamp(3)",
    "ALTER TABLE t ALTER COLUMN a TYPE int",
    "ALTER TABLE t ALTER COLUMN a TYPE int USING a + 1",
    "ALTER TABLE t ALTER COLUMN a SET STATISTICS 100",
    "ALTER TABLE t ALTER COLUMN x SET STORAGE EXTERNAL",
    "ALTER TABLE t ALTER COLUMN x SET COMPRESSION pglz",
    "ALTER TABLE t ALTER COLUMN g DROP EXPRESSION",
    "ALTER TABLE t ADD CONSTRAINT c CHECK (b > 0)",
    "ALTER TABLE t ADD CONSTRAINT c CHECK (b > 0) NOT VALID",
    "ALTER TABLE other VALIDATE CONSTRAINT nv",
    "ALTER TABLE other VALIDATE CONSTRAINT nvfk",
    "ALTER TABLE other ADD CONSTRAINT c FOREIGN KEY (p) REFERENCES parent",
    "ALTER TABLE other ADD CONSTRAINT c FOREIGN KEY (p) REFERENCES parent NOT VALID",
    "ALTER TABLE other ADD PRIMARY KEY (id)",
    "ALTER TABLE other ADD CONSTRAINT pk PRIMARY KEY USING INDEX other_u",
    "ALTER TABLE other ADD CONSTRAINT un UNIQUE USING INDEX other_u",
    "ALTER TABLE t ADD CONSTRAINT c UNIQUE (a)",
    "ALTER TABLE t ADD CONSTRAINT c EXCLUDE (a WITH =)",
    "ALTER TABLE t DROP CONSTRAINT t_ck_nn",
    "ALTER TABLE t DROP CONSTRAINT t_p_fkey",
    "ALTER TABLE t DROP CONSTRAINT t_pkey",
    "ALTER TABLE t RENAME CONSTRAINT t_ck_nn TO z",
    "CREATE INDEX i ON t (a)",
    "CREATE UNIQUE INDEX i ON t (a)",
    "CREATE INDEX i ON t (lower(x))",
    "DROP INDEX t_a",
    "ALTER INDEX t_a RENAME TO t_b",
    "ALTER TABLE t SET (fillfactor = 70)",
    "ALTER TABLE t SET (autovacuum_enabled = false)",
    "ALTER TABLE t RESET (fillfactor)",
    "ALTER TABLE t SET UNLOGGED",
    "ALTER TABLE t OWNER TO CURRENT_USER",
    "ALTER TABLE t REPLICA IDENTITY FULL",
    "ALTER TABLE t CLUSTER ON t_a",
    "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE t DISABLE TRIGGER ALL",
    "ALTER TABLE t ALTER CONSTRAINT t_p_fkey DEFERRABLE",
    "ALTER TABLE part ADD COLUMN c int",
    "ALTER TABLE part ATTACH PARTITION part2 FOR VALUES FROM (100) TO (200)",
    "ALTER TABLE part DETACH PARTITION part1",
    "CREATE INDEX i ON part (a)",
    "CREATE INDEX i ON ONLY part (a)",
    "CREATE TABLE n (id int)",
    "CREATE TABLE n (id int REFERENCES parent)",
    "CREATE TABLE n PARTITION OF part FOR VALUES FROM (300) TO (400)",
    "CREATE TABLE n AS SELECT * FROM t",
    "DROP TABLE other",
    "DROP TABLE t",
    "TRUNCATE t",
    "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE VIEW v2 AS SELECT * FROM t",
    "DROP VIEW vw",
    "CREATE OR REPLACE VIEW vw AS SELECT id FROM parent WHERE id > 0",
    "COMMENT ON TABLE t IS 'x'",
    "COMMENT ON COLUMN t.a IS 'x'",
    "GRANT SELECT ON t TO CURRENT_USER",
    "ALTER TYPE mood ADD VALUE 'c'",
    "CREATE TYPE mood2 AS ENUM ('x')",
    "CREATE SEQUENCE s2",
    "ALTER SEQUENCE sq RESTART 5",
    "REFRESH MATERIALIZED VIEW mv",
    "CREATE MATERIALIZED VIEW mv2 AS SELECT * FROM t",
    "CREATE INDEX CONCURRENTLY i ON t (a)",
    "DROP INDEX CONCURRENTLY t_a",
    "INSERT INTO t (a, ck) SELECT a, 1 FROM t",
    "ALTER TABLE t ADD COLUMN c numeric(10,2) DEFAULT 0.00 NOT NULL",
    "ALTER TABLE t ADD COLUMN c jsonb NOT NULL DEFAULT '{}'::jsonb",
    "ALTER TABLE t ADD COLUMN c text[] DEFAULT ARRAY[]::text[]",
    "ALTER TABLE t ADD COLUMN c int, ADD COLUMN d int",
    "ALTER TABLE t DROP COLUMN IF EXISTS zzz",
)  # fmt: skip

#: Where our rules are stricter than the server on purpose: it depends on what they cannot see (the time zone of the
#: session, what a table is already, whether a type of one's own has rules).
STRICTER: Final = (
    "ALTER TABLE t ALTER COLUMN ts TYPE timestamptz",
    "ALTER TABLE t ALTER COLUMN x TYPE text COLLATE \"C\"",
    "ALTER TABLE t SET LOGGED",
    "ALTER TABLE t SET TABLESPACE pg_default",
    "ALTER TABLE t ADD COLUMN c mood",
)  # fmt: skip
