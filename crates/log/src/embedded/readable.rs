//! Owns reading from a file as much as there is, and as much as the disk can read.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use rustix::io::Errno;

/// What the disk cannot read is found out in pieces of this size: a sector of most disks.
const UNREADABLE_BYTES: usize = 4096;

/// Fills the buffer, unless the file ends before.
pub(super) fn read_at_most(file: &File, buffer: &mut [u8], from: u64) -> io::Result<usize> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, from + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// The same. What the disk cannot read counts as zeros, which no checksum fits, unless that is most of
/// it: then it is the disk that fails, for now or for good. With `forgives` it counts as zeros all the same.
pub(super) fn read_what_is_readable(
    file: &File,
    buffer: &mut [u8],
    from: u64,
    forgives: bool,
) -> io::Result<usize> {
    let error = match read_at_most(file, buffer, from) {
        Err(error) if is_unreadable(&error) => error,
        read => return read,
    };
    let (mut read, mut failed) = (0, 0);
    for piece in buffer.chunks_mut(UNREADABLE_BYTES) {
        let wanted = piece.len();
        match read_at_most(file, piece, from + read as u64) {
            Ok(more) => {
                read += more;
                if more < wanted {
                    break;
                }
            }
            Err(error) if is_unreadable(&error) => {
                piece.fill(0);
                read += wanted;
                failed += wanted;
            }
            Err(error) => return Err(error),
        }
    }
    if failed * 2 > read && !forgives {
        Err(error)
    } else {
        Ok(read)
    }
}

/// The medium, or the checksums of the file system, say that these bytes are lost.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| {
        [Errno::IO, Errno::UCLEAN]
            .map(Errno::raw_os_error)
            .contains(&errno)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_cannot_read_counts_as_zeros_unless_it_is_most_of_it() {
        // Reading where nothing is mapped fails as a bad sector does.
        let memory = File::open("/proc/self/mem").unwrap();
        let mapped = vec![7_u8; 8 * UNREADABLE_BYTES];
        let mut buffer = vec![1; 4 * UNREADABLE_BYTES];
        let at = (mapped.as_ptr() as u64).next_multiple_of(UNREADABLE_BYTES as u64);
        let read = read_what_is_readable(&memory, &mut buffer, at, false).unwrap();
        assert_eq!(read, buffer.len());
        assert!(buffer.iter().all(|&byte| byte == 7));
        let error = read_what_is_readable(&memory, &mut buffer, 0, false).unwrap_err();
        assert!(is_unreadable(&error), "{error}");
        let read = read_what_is_readable(&memory, &mut buffer, 0, true).unwrap();
        assert_eq!(read, buffer.len());
        assert!(buffer.iter().all(|&byte| byte == 0));
        // The first bytes behind a mapping that has nothing behind it.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let maps = maps.lines().filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            rest.starts_with('r').then(|| (number(from), number(to)))
        });
        let maps: Vec<_> = maps.collect();
        let before_hole = |&&(from, to): &&(u64, u64)| {
            let bytes = 3 * UNREADABLE_BYTES as u64;
            to - from >= bytes && to < 1 << 47 && maps.iter().all(|&(next, _)| next != to)
        };
        let (_, end) = *maps.iter().find(before_hole).unwrap();
        let from = end - 3 * UNREADABLE_BYTES as u64;
        let read = read_what_is_readable(&memory, &mut buffer, from, false).unwrap();
        assert_eq!(read, buffer.len());
        assert!(buffer[3 * UNREADABLE_BYTES..].iter().all(|&byte| byte == 0));
    }
}
