//! Owns the checksums of the index's rows, which SQLite does not have: with them a damaged row is
//! noticed when it is read, instead of being believed. Also tells which errors of SQLite mean that
//! the index is damaged.

use rusqlite::{ErrorCode, ffi};

/// The checksum of a row: of its table's name, its numbers and its bytes.
pub(super) fn of_row(table: &str, numbers: &[i64], bytes: &[u8]) -> i64 {
    let mut sum = crc32c::crc32c(table.as_bytes());
    for number in numbers {
        sum = crc32c::crc32c_append(sum, &number.to_le_bytes());
    }
    i64::from(crc32c::crc32c_append(sum, bytes))
}

/// The error for a row that does not fit its checksum, or is missing.
pub(super) fn damaged(what: String) -> rusqlite::Error {
    let code = ffi::Error::new(ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(what))
}

/// Fails unless a row fits its checksum.
pub(super) fn check(fits: bool, what: impl FnOnce() -> String) -> rusqlite::Result<()> {
    if fits { Ok(()) } else { Err(damaged(what())) }
}

/// Whether an error means that the content of the database is damaged, not that it cannot be read
/// or written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            let is_short = failure.extended_code == ffi::SQLITE_IOERR_SHORT_READ;
            // A statement that cannot be prepared: its table is not what it was.
            let is_schema = failure.extended_code == ffi::SQLITE_ERROR;
            let is_constraint = failure.code == ErrorCode::ConstraintViolation;
            let is_corrupt = failure.code == ErrorCode::DatabaseCorrupt;
            is_corrupt || is_short || is_schema || is_constraint
        }
        // A value of another type than the table's, a row or a column that is missing.
        rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnIndex(_)
        | rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::SqlInputError { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_bit_changes_the_checksum() {
        let (numbers, bytes) = ([0, -1, i64::MAX], b"keys".to_vec());
        let sum = of_row("log", &numbers, &bytes);
        assert_ne!(sum, of_row("terms", &numbers, &bytes));
        for bit in 0..3 * 64 {
            let mut changed = numbers;
            changed[bit / 64] ^= 1 << (bit % 64);
            assert_ne!(sum, of_row("log", &changed, &bytes), "bit {bit}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(sum, of_row("log", &numbers, &changed), "bit {bit}");
        }
        assert!(is_damage(&damaged(String::new())));
        let busy = ffi::Error::new(ffi::SQLITE_BUSY);
        assert!(!is_damage(&rusqlite::Error::SqliteFailure(busy, None)));
    }
}
