//! Owns one run of keys on disk: pages of keys in their order, cut by the keys' first bits, so that
//! it is known without a search which page would hold a key; and their filters. A run is written
//! once, slice after slice, and never changed.

use std::ops::RangeInclusive;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};

use super::{
    Key,
    filter::{Filter, Filters},
};
use crate::{clock::RetentionTime, embedded::checksum};

/// Pages of the database, in bytes: what is written at once is a few times this.
pub(in crate::embedded) const PAGE_BYTES: u64 = 8192;

/// Pages of a slice, as a power of two.
const SLICE_PAGES_BITS: u32 = 4;
/// How many keys a page has on average, at most: so many that two seldom run over a page of the
/// database, for all that chance gives one page more than another.
const PAGE_KEYS_MEAN_MAX: u64 = PAGE_BYTES / 2 / size_of::<Key>() as u64 * 7 / 8;
/// How many keys a slice has on average, at most. A slice is what is written in one go.
pub(super) const SLICE_KEYS_MEAN_MAX: u64 = PAGE_KEYS_MEAN_MAX << SLICE_PAGES_BITS;

/// The parts of a run have consecutive places, after the run's number in the upper half.
const PLACE_BITS: u32 = 32;

pub(super) struct Run {
    pub(super) id: i64,
    /// How often its keys were merged.
    pub(super) level: u32,
    /// There are two to the power of this many slices.
    pub(super) slice_bits: u32,
    pub(super) keys: u64,
    pub(super) oldest_at: RetentionTime,
    pub(super) newest_at: RetentionTime,
    pub(super) filters: Filters,
}

impl Run {
    /// How many slices are needed, as a power of two.
    pub(super) fn slice_bits_for(keys: u64, slice_keys_max: u64) -> u32 {
        let mut bits = 0;
        while keys >> bits > slice_keys_max {
            bits += 1;
        }
        bits
    }

    pub(super) fn slices(&self) -> u64 {
        1 << self.slice_bits
    }

    /// Whether the page of a key has to be looked at.
    pub(super) fn may_hold(&self, key: Key) -> bool {
        self.filters.may_hold(prefix(key, self.slice_bits), key)
    }

    /// The same of a run that is being written. Of slices that it has not got nothing is said: those
    /// from which it is made still have them.
    pub(super) fn may_hold_already(&self, key: Key) -> bool {
        let slice = prefix(key, self.slice_bits);
        slice < self.filters.len() && self.filters.may_hold(slice, key)
    }

    /// This run is merged into another one, which has its first slices by now: they are asked there.
    /// Returns how many bytes of filters that frees.
    pub(super) fn retire(&mut self, output_slice_bits: u32, output_slices: u64) -> usize {
        // The output has no fewer keys, so its slices are no larger.
        let finer = output_slice_bits.saturating_sub(self.slice_bits);
        self.filters.retire(output_slices >> finer)
    }

    /// Looks at the page of a key. A page that is missing though it was written is an error.
    pub(super) fn holds(&self, pages: &mut Pages<'_>, key: Key) -> rusqlite::Result<bool> {
        let page = prefix(key, self.page_bits());
        let place = place(self.id, page);
        let found = pages
            .page
            .query_row([place], |row| {
                let bytes = row.get_ref(0)?.as_blob()?;
                check_page(place, bytes, row.get(1)?)?;
                let (keys, _) = bytes.as_chunks();
                Ok(keys.binary_search(&key.to_be_bytes()).is_ok())
            })
            .optional()?;
        if found.is_none() {
            let slice = self::place(self.id, page >> SLICE_PAGES_BITS);
            let written: i64 = pages.slice.query_row([slice], |row| row.get(0))?;
            let was_written = written & page_bit(page) != 0;
            checksum::check(!was_written, || {
                format!("page {place} of the ids is missing")
            })?;
        }
        Ok(found.unwrap_or(false))
    }

    /// Adds the keys that begin with these bits, in order.
    pub(super) fn read(
        &self,
        connection: &Connection,
        range: &RangeInclusive<Key>,
        into: &mut Vec<Key>,
    ) -> rusqlite::Result<()> {
        let bits = self.page_bits();
        let (first, last) = (prefix(*range.start(), bits), prefix(*range.end(), bits));
        let mut pages = connection.prepare_cached(
            "SELECT keys, checksum, place FROM id_pages WHERE place BETWEEN ?1 AND ?2 \
             ORDER BY place",
        )?;
        let mut rows = pages.query([place(self.id, first), place(self.id, last)])?;
        let mut found = 0;
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob()?;
            check_page(row.get(2)?, bytes, row.get(1)?)?;
            let (keys, _) = bytes.as_chunks();
            let keys = keys.iter().map(|&key| Key::from_be_bytes(key));
            into.extend(keys.filter(|key| range.contains(key)));
            found += 1;
        }
        let written = self.pages_written(connection, first..=last)?;
        checksum::check(found == written, || {
            format!(
                "run {} of the ids has {found} pages, not {written}",
                self.id
            )
        })
    }

    /// How many of these pages were written: those without keys were not.
    fn pages_written(
        &self,
        connection: &Connection,
        pages: RangeInclusive<u64>,
    ) -> rusqlite::Result<u32> {
        let slice_of = |page: u64| page >> SLICE_PAGES_BITS;
        let mut slices = connection
            .prepare_cached("SELECT place, pages FROM id_filters WHERE place BETWEEN ?1 AND ?2")?;
        let mut rows = slices.query([
            place(self.id, slice_of(*pages.start())),
            place(self.id, slice_of(*pages.end())),
        ])?;
        let mut written = 0;
        while let Some(row) = rows.next()? {
            let slice = row.get::<_, i64>(0)? - place(self.id, 0);
            let bits: i64 = row.get(1)?;
            let first = slice.cast_unsigned() << SLICE_PAGES_BITS;
            let of_slice = first..first + (1 << SLICE_PAGES_BITS);
            let wanted =
                of_slice.filter(|page| pages.contains(page) && bits & page_bit(*page) != 0);
            written += u32::try_from(wanted.count()).unwrap_or(u32::MAX);
        }
        Ok(written)
    }

    /// Writes the keys of a slice, which are in order.
    pub(super) fn write(
        &self,
        connection: &Connection,
        slice: u64,
        keys: &[Key],
        bits_per_key: usize,
    ) -> rusqlite::Result<Filter> {
        let bits = self.page_bits();
        let mut insert = connection.prepare_cached("INSERT INTO id_pages VALUES (?1, ?2, ?3)")?;
        let mut bytes = Vec::with_capacity(PAGE_BYTES as usize);
        let mut pages = 0;
        for page in keys.chunk_by(|&a, &b| prefix(a, bits) == prefix(b, bits)) {
            bytes.clear();
            page.iter()
                .for_each(|key| bytes.extend_from_slice(&key.to_be_bytes()));
            let page = page.first().map_or(0, |&key| prefix(key, bits));
            pages |= page_bit(page);
            let place = place(self.id, page);
            insert.execute(params![place, bytes, page_checksum(place, &bytes)])?;
        }
        // This row is also what tells, after a crash, that the slice is there.
        let filter = Filter::new(keys, bits_per_key);
        let (place, words) = (place(self.id, slice), filter.to_bytes());
        connection
            .prepare_cached("INSERT INTO id_filters VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                place,
                words,
                pages,
                slice_checksum(place, pages, &words)
            ])?;
        Ok(filter)
    }

    /// How many slices have been written.
    pub(super) fn written(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let last: Option<i64> = connection.query_row(
            "SELECT max(place) FROM id_filters WHERE place BETWEEN ?1 AND ?2",
            params![place(self.id, 0), place(self.id, u64::MAX)],
            |row| row.get(0),
        )?;
        Ok(last.map_or(0, |last| (last - place(self.id, 0)).cast_unsigned() + 1))
    }

    /// Reads the filters of so many slices, and passes them on one by one.
    pub(super) fn read_filters(
        connection: &Connection,
        id: i64,
        slices: u64,
        mut each: impl FnMut(Filter),
    ) -> rusqlite::Result<()> {
        let mut filters = connection.prepare_cached(
            "SELECT place, words, pages, checksum FROM id_filters \
             WHERE place BETWEEN ?1 AND ?2 ORDER BY place",
        )?;
        let mut rows = filters.query([place(id, 0), place(id, u64::MAX)])?;
        let mut slice = 0;
        while let Some(row) = rows.next()? {
            let (found, pages): (i64, i64) = (row.get(0)?, row.get(2)?);
            let words = row.get_ref(1)?.as_blob()?;
            let fits = found == place(id, slice)
                && row.get::<_, i64>(3)? == slice_checksum(found, pages, words);
            checksum::check(fits, || {
                format!("slice {slice} of run {id} of the ids is damaged")
            })?;
            each(Filter::from_bytes(words));
            slice += 1;
        }
        checksum::check(slice == slices, || {
            format!("run {id} of the ids has {slice} slices, not {slices}")
        })
    }

    fn page_bits(&self) -> u32 {
        self.slice_bits + SLICE_PAGES_BITS
    }
}

/// The statements for [`Run::holds`].
pub(super) struct Pages<'a> {
    page: CachedStatement<'a>,
    slice: CachedStatement<'a>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            page: connection
                .prepare_cached("SELECT keys, checksum FROM id_pages WHERE place = ?1")?,
            slice: connection.prepare_cached("SELECT pages FROM id_filters WHERE place = ?1")?,
        })
    }
}

fn page_checksum(place: i64, keys: &[u8]) -> i64 {
    checksum::of_row("id_pages", &[place], keys)
}

fn check_page(place: i64, keys: &[u8], found: i64) -> rusqlite::Result<()> {
    checksum::check(found == page_checksum(place, keys), || {
        format!("page {place} of the ids is damaged")
    })
}

fn slice_checksum(place: i64, pages: i64, words: &[u8]) -> i64 {
    checksum::of_row("id_filters", &[place, pages], words)
}

/// Which bit says that a page was written, in the row of its slice.
fn page_bit(page: u64) -> i64 {
    1 << (page & ((1 << SLICE_PAGES_BITS) - 1))
}

/// Deletes some slices of a run, from its end, and with the first of them all trace of it. True when
/// there is more.
pub(super) fn delete(connection: &Connection, id: i64, slices: u64) -> rusqlite::Result<bool> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(place) FROM id_filters WHERE place BETWEEN ?1 AND ?2")?
        .query_row([place(id, 0), place(id, u64::MAX)], |row| row.get(0))?;
    let written = last.map_or(0, |last| (last - place(id, 0)).cast_unsigned() + 1);
    let left = written.saturating_sub(slices);
    connection
        .prepare_cached("DELETE FROM id_filters WHERE place BETWEEN ?1 AND ?2")?
        .execute([place(id, left), place(id, u64::MAX)])?;
    connection
        .prepare_cached("DELETE FROM id_pages WHERE place BETWEEN ?1 AND ?2")?
        .execute([place(id, left << SLICE_PAGES_BITS), place(id, u64::MAX)])?;
    if left == 0 {
        connection
            .prepare_cached("DELETE FROM id_runs WHERE id = ?1")?
            .execute([id])?;
    }
    Ok(left > 0)
}

/// The keys that begin with these bits.
pub(super) fn prefix_range(prefix: u64, bits: u32) -> RangeInclusive<Key> {
    let rest = Key::MAX.checked_shr(bits).unwrap_or(0);
    let start = Key::from(prefix).checked_shl(Key::BITS - bits).unwrap_or(0);
    start..=start | rest
}

/// The first bits of a key.
fn prefix(key: Key, bits: u32) -> u64 {
    key.checked_shr(Key::BITS - bits).unwrap_or(0) as u64
}

fn place(id: i64, part: u64) -> i64 {
    let part_max = (1 << PLACE_BITS) - 1;
    (id << PLACE_BITS) | part.min(part_max).cast_signed()
}
