//! Owns which failures of the system pass by themselves, so that they end no log.

use std::io::{self, ErrorKind};

use rustix::io::Errno;

/// The disk has no room, for now.
pub(super) fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// The process or the system has no more file descriptors, for now. Said of opening a file only, so
/// nothing was written.
pub(super) fn is_no_descriptor(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| {
        [Errno::MFILE, Errno::NFILE]
            .map(Errno::raw_os_error)
            .contains(&errno)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let of = |errno: Errno| io::Error::from(errno);
        assert!(is_no_descriptor(&of(Errno::MFILE)) && is_no_descriptor(&of(Errno::NFILE)));
        assert!(is_no_space(&of(Errno::NOSPC)) && is_no_space(&of(Errno::DQUOT)));
        assert!(!is_no_descriptor(&of(Errno::IO)) && !is_no_space(&of(Errno::IO)));
    }
}
