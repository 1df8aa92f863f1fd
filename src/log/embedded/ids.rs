//! Owns the memory for repetitions: which event keys were appended within the last weeks.
//!
//! Three tables take turns as *current*, *previous* and *retired*. Keys go into the current one and
//! are looked up in the current and the previous one; once the current one is as old as ids must be
//! remembered, each moves on. So a key is remembered for one to two times that age, and forgetting
//! is emptying the retired table from one end, a little at a time: no key has a time of its own,
//! and nothing is ever searched for what is old.

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use crate::event::{EventKey, UnixMicros};

/// How many keys are forgotten in one step: about ten neighbouring pages.
const PRUNE_KEYS: i64 = 2_000;

pub(super) struct Ids {
    generation: i64,
    since: UnixMicros,
    age_micros: i64,
    /// Most of the time they are, and need not be looked at.
    previous_is_empty: bool,
    retired_is_empty: bool,
}

impl Ids {
    pub(super) fn open(
        connection: &Connection,
        generation: i64,
        since: UnixMicros,
        age_micros: i64,
    ) -> rusqlite::Result<Self> {
        let mut ids = Self {
            generation,
            since,
            age_micros,
            previous_is_empty: false,
            retired_is_empty: false,
        };
        ids.previous_is_empty = ids.is_empty(connection, ids.previous())?;
        ids.retired_is_empty = ids.is_empty(connection, ids.retired())?;
        Ok(ids)
    }

    /// Remembers keys, and tells which of them are new. Of a key that occurs more than once, the
    /// first is new.
    pub(super) fn insert(
        &self,
        connection: &Connection,
        keys: &[EventKey],
    ) -> rusqlite::Result<Vec<bool>> {
        // In the order of the index: neighbours share pages, and equal keys follow one another in
        // the order of the events.
        let mut order: Vec<(EventKey, usize)> = keys.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut known = connection
            .prepare_cached(&format!("SELECT 1 FROM {} WHERE key = ?1", self.previous()))?;
        let mut insert = connection.prepare_cached(&format!(
            "INSERT INTO {} VALUES (?1) ON CONFLICT DO NOTHING",
            self.current()
        ))?;
        let mut fresh = vec![false; keys.len()];
        for (key, index) in order {
            if let Some(place) = fresh.get_mut(index) {
                *place = self.insert_one(&mut known, &mut insert, key)?;
            }
        }
        Ok(fresh)
    }

    fn insert_one(
        &self,
        known: &mut CachedStatement<'_>,
        insert: &mut CachedStatement<'_>,
        key: EventKey,
    ) -> rusqlite::Result<bool> {
        if !self.previous_is_empty && known.exists([key.0])? {
            return Ok(false);
        }
        Ok(insert.execute([key.0])? > 0)
    }

    /// Whether [`step`](Self::step) has anything to do.
    pub(super) fn is_due(&self, now: UnixMicros) -> bool {
        !self.retired_is_empty || self.is_old(now)
    }

    /// Forgets a few keys, or moves the tables on. Part of a transaction; what it changed counts
    /// only when the returned value takes the place of this one.
    pub(super) fn step(&self, connection: &Connection, now: UnixMicros) -> rusqlite::Result<Self> {
        let mut next = Self { ..*self };
        if !self.retired_is_empty {
            let table = self.retired();
            let deleted = connection
                .prepare_cached(&format!(
                    "DELETE FROM {table} WHERE key IN \
                     (SELECT key FROM {table} ORDER BY key LIMIT ?1)"
                ))?
                .execute([PRUNE_KEYS])?;
            next.retired_is_empty = deleted == 0;
        } else if self.is_old(now) {
            connection
                .prepare_cached("UPDATE log SET ids_generation = ?1, ids_since = ?2")?
                .execute(params![self.generation + 1, now.0])?;
            next.generation += 1;
            next.since = now;
            next.retired_is_empty = self.previous_is_empty;
            next.previous_is_empty = self.is_empty(connection, self.current())?;
        }
        Ok(next)
    }

    fn is_old(&self, now: UnixMicros) -> bool {
        now.0.saturating_sub(self.since.0) >= self.age_micros
    }

    fn is_empty(&self, connection: &Connection, table: &str) -> rusqlite::Result<bool> {
        let first = connection
            .query_row(&format!("SELECT 1 FROM {table} LIMIT 1"), [], |_| Ok(()))
            .optional()?;
        Ok(first.is_none())
    }

    fn current(&self) -> &'static str {
        table(self.generation)
    }

    fn previous(&self) -> &'static str {
        table(self.generation - 1)
    }

    fn retired(&self) -> &'static str {
        table(self.generation - 2)
    }
}

fn table(generation: i64) -> &'static str {
    match generation.rem_euclid(3) {
        0 => "ids_0",
        1 => "ids_1",
        _ => "ids_2",
    }
}
