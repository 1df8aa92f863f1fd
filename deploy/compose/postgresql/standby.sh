#!/bin/sh
# Makes a standby of the primary unless its data is there already, and runs it.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    until PGPASSWORD="$STORE_PASSWORD" pg_basebackup --pgdata "$PGDATA" --wal-method stream --write-recovery-conf \
        --dbname "host=$PRIMARY_HOST port=${PRIMARY_PORT:-5432} user=replicator application_name=standby"; do
        echo "standby: the primary does not answer yet" >&2
        sleep 1
    done
    chmod 0700 "$PGDATA"
fi
exec postgres "$@"
