#!/bin/sh
# Runs once, on a new primary, before it listens: the role of the bridges, that of the standby, and, last,
# that commits wait for the standby. Nothing could be committed after that line until there is one.
set -eu

psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --set ON_ERROR_STOP=1 \
    --set store_password="$STORE_PASSWORD" <<'SQL'
CREATE ROLE prelude LOGIN PASSWORD :'store_password';
CREATE DATABASE prelude OWNER prelude;
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'store_password';
ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (standby)';
SQL
