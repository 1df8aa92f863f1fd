//! Records what a process does to a directory, with a small library that is loaded before the
//! others, and reads the record. The library can also make one call fail.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::sites::Operation;

const SHIM: &str = include_str!("shim.c");
const HEADER_BYTES: usize = 40;
/// The operation of a record that a test wrote.
const MARK: u32 = 100;

/// The library, and the files that it writes.
pub(crate) struct Shim {
    directory: TempDir,
}

impl Shim {
    pub(crate) fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("shim.c");
        fs::write(&source, SHIM).unwrap();
        let compiled = Command::new("cc")
            .args(["-Wall", "-Werror", "-shared", "-fPIC", "-O1", "-o"])
            .args([&directory.path().join("shim.so"), &source])
            .arg("-ldl")
            .status();
        assert!(
            compiled.unwrap().success(),
            "the C compiler that the cryptography needs too"
        );
        Self { directory }
    }

    /// Has what this command does to a directory recorded.
    pub(crate) fn attach(&self, command: &mut Command, root: &Path, trace: &Trace) {
        command
            .env("LD_PRELOAD", self.directory.path().join("shim.so"))
            .env("DISK_ROOT", root)
            .env("DISK_TRACE", &trace.path);
    }

    /// Has a call of it fail.
    pub(crate) fn fail(command: &mut Command, fault: Fault) {
        let Fault {
            operation,
            addresses: [function, caller],
            error,
            skipped,
        } = fault;
        let operation = operation as u32;
        let text = format!("{operation} {error} {skipped} {function:x} {caller:x}");
        command.env("DISK_FAULT", text);
    }

    pub(crate) fn trace(&self, name: &str) -> Trace {
        let path = self.directory.path().join(name);
        // Empty, also where an earlier one had this name.
        fs::write(&path, "").unwrap();
        Trace { path }
    }
}

/// A call that is to fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) operation: Operation,
    /// Of the two functions that its site names.
    pub(crate) addresses: [usize; 2],
    pub(crate) error: i32,
    /// So many calls of the site do not fail before.
    pub(crate) skipped: usize,
}

impl Fault {
    /// Instead of an error: the process is killed before the call.
    pub(crate) const KILL: i32 = -9;
}

/// A record that is being written.
#[derive(Clone)]
pub(crate) struct Trace {
    path: PathBuf,
}

/// What a test saw at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// This batch was answered with 200.
    Answered(usize),
    /// The oldest event that can be read.
    Earliest(u64),
    /// The bridge is ready, and shows subscribers the events up to this one.
    Ready(u64),
}

/// A call, or a mark.
pub(crate) struct Record {
    pub(crate) what: What,
    /// Where the program made the call: addresses of its code, innermost first.
    pub(crate) frames: Vec<usize>,
    pub(crate) error: i32,
}

pub(crate) enum What {
    Open {
        descriptor: i32,
        path: String,
        flags: i32,
    },
    Write {
        descriptor: i32,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        descriptor: i32,
        length: usize,
    },
    Sync {
        descriptor: i32,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Mkdir {
        path: String,
    },
    Read,
    List,
    Mark(Mark),
}

impl Record {
    /// The operation, unless it is a mark.
    pub(crate) fn operation(&self) -> Option<Operation> {
        Some(match self.what {
            What::Open { .. } => Operation::Open,
            What::Write { .. } => Operation::Write,
            What::Truncate { .. } => Operation::Truncate,
            What::Sync { .. } => Operation::Sync,
            What::Rename { .. } => Operation::Rename,
            What::Unlink { .. } => Operation::Unlink,
            What::Mkdir { .. } => Operation::Mkdir,
            What::Read => Operation::Read,
            What::List => Operation::List,
            What::Mark(_) => return None,
        })
    }
}

impl Trace {
    /// Notes what was seen, after everything that led to it.
    pub(crate) fn mark(&self, mark: Mark) {
        let (kind, value) = match mark {
            Mark::Answered(batch) => (0, batch as u64),
            Mark::Earliest(sequence) => (1, sequence),
            Mark::Ready(head) => (2, head),
        };
        let mut record = [0; HEADER_BYTES];
        record[0..4].copy_from_slice(&MARK.to_ne_bytes());
        record[8..16].copy_from_slice(&i64::to_ne_bytes(kind));
        record[16..24].copy_from_slice(&value.to_ne_bytes());
        let mut file = OpenOptions::new().append(true).open(&self.path).unwrap();
        file.write_all(&record).unwrap();
    }

    pub(crate) fn remove(self) {
        fs::remove_file(self.path).unwrap();
    }

    pub(crate) fn read(&self) -> Vec<Record> {
        let bytes = fs::read(&self.path).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            records.push(next(&mut rest));
        }
        records
    }
}

fn next(rest: &mut &[u8]) -> Record {
    let mut take = |length: usize| {
        let (taken, others) = rest.split_at(length);
        *rest = others;
        taken
    };
    let header = take(HEADER_BYTES);
    let u32_at = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap());
    let u16_at = |at: usize| usize::from(u16::from_ne_bytes([header[at], header[at + 1]]));
    let (operation, descriptor) = (u32_at(0), u32_at(4).cast_signed());
    let (offset, length) = (u64_at(8), usize::try_from(u64_at(16)).unwrap());
    let error = u32_at(24).cast_signed();
    let frames = take(u16_at(28) * 8).chunks_exact(8);
    let frames = frames
        .map(|frame| usize::from_ne_bytes(frame.try_into().unwrap()))
        .collect();
    let mut text = |length: usize| String::from_utf8(take(length).to_vec()).unwrap();
    let (path, other_path) = (text(u16_at(30)), text(u16_at(32)));
    let what = match operation {
        1 => What::Open {
            descriptor,
            path,
            flags: i32::try_from(offset).unwrap(),
        },
        2 => What::Write {
            descriptor,
            offset: usize::try_from(offset).unwrap(),
            bytes: take(length).to_vec(),
        },
        3 => What::Truncate { descriptor, length },
        4 => What::Sync { descriptor },
        5 => What::Rename {
            from: path,
            to: other_path,
        },
        6 => What::Unlink { path },
        7 => What::Mkdir { path },
        8 => What::Read,
        9 => What::List,
        MARK => What::Mark(match offset {
            0 => Mark::Answered(length),
            1 => Mark::Earliest(length as u64),
            _ => Mark::Ready(length as u64),
        }),
        other => unreachable!("operation {other}"),
    };
    Record {
        what,
        frames,
        error,
    }
}
