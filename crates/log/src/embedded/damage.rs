//! Owns how damage is made known, whoever comes across it: a start, a reader, the check in the
//! background. It is in the log's status, and said once.

use super::{
    Shared,
    readers::{Failure, Located},
};
use crate::{Damaged, ReadError};

impl Shared {
    /// What a failure to read means for who reads. Damage is made known to everybody.
    pub(super) fn evaluate_reading(&self, failure: Failure) -> ReadError {
        match failure {
            Failure::Damaged(located) => ReadError::Damaged(self.note_damage(&located)),
            Failure::Read(error) => error,
        }
    }

    /// Makes damage known, with a line in the log if it is new. Returns its whole range.
    pub(super) fn note_damage(&self, located: &Located) -> Damaged {
        let (whole, is_new) = self.publisher.add_damaged(located.events);
        if is_new {
            report_damage(located);
        }
        whole
    }
}

/// Says which events are damaged, where they are, and what can be done.
fn report_damage(located: &Located) {
    let (from, to) = located.bytes.unzip();
    tracing::error!(
        path = %located.path.display(),
        first_event = located.events.first.0,
        last_event = located.events.last.0,
        from_byte = from,
        to_byte = to,
        is_missing = !located.path.exists(),
        "events of the log are damaged and cannot be read: stop the bridge and restore the file from \
         a backup, or have subscribers pass over them; all other events are served"
    );
}
