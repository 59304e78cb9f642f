"""How a statement is read, clause by clause: the grammar of each engine's DDL, as far as migrations use it."""
