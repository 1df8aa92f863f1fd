//! What a process did to its files, step by step, and the files that it began with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::trace::{Mark, Record, What};

const O_TRUNC: i32 = 0o1000;

/// The files of a directory by path, and its directories: what a start finds.
#[derive(Clone, Default, Debug)]
pub(crate) struct Image {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) directories: BTreeSet<String>,
}

impl Image {
    /// What is in a directory.
    pub(crate) fn read(from: &Path) -> Self {
        let mut image = Self::default();
        let mut ahead = vec![String::new()];
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(from.join(&directory)).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let path = format!("{directory}{name}");
                if from.join(&path).is_dir() {
                    ahead.push(format!("{path}/"));
                    image.directories.insert(path);
                } else {
                    image
                        .files
                        .insert(path.clone(), fs::read(from.join(path)).unwrap());
                }
            }
        }
        image
    }

    /// Writes it to a directory, which is to be empty.
    pub(crate) fn write(&self, to: &Path) {
        for directory in &self.directories {
            fs::create_dir(to.join(directory)).unwrap();
        }
        for (path, bytes) in &self.files {
            fs::write(to.join(path), bytes).unwrap();
        }
    }
}

pub(crate) type Node = usize;
/// The directory itself.
pub(crate) const ROOT: Node = 0;

/// One change, or a flush, or a mark.
pub(crate) enum Step {
    Enter {
        directory: Node,
        name: String,
        node: Node,
        is_directory: bool,
    },
    Remove {
        directory: Node,
        name: String,
    },
    Move {
        from: (Node, String),
        to: (Node, String),
        node: Node,
    },
    Write {
        node: Node,
        offset: usize,
        bytes: Vec<u8>,
    },
    Size {
        node: Node,
        bytes: usize,
    },
    /// The number is that of its record.
    Flush {
        node: Node,
        record: usize,
    },
    FailedFlush {
        node: Node,
    },
    Mark(Mark),
}

/// What a process did, file by file.
pub(crate) struct History {
    pub(crate) base: Image,
    pub(crate) steps: Vec<Step>,
}

/// Where a name is while the steps are made out.
pub(crate) struct Names {
    pub(crate) paths: BTreeMap<String, Node>,
    next: Node,
}

impl Names {
    pub(crate) fn of(image: &Image) -> Self {
        let mut names = Self {
            paths: BTreeMap::from([(String::new(), ROOT)]),
            next: ROOT + 1,
        };
        for path in image.directories.iter().chain(image.files.keys()) {
            names.add(path);
        }
        names
    }

    fn add(&mut self, path: &str) -> Node {
        self.paths.insert(path.to_owned(), self.next);
        self.next += 1;
        self.next - 1
    }

    /// The directory of a path, and its name there.
    pub(crate) fn place(&self, path: &str) -> (Node, String) {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.paths[directory], name.to_owned())
    }
}

impl History {
    /// Of a process that began with these files.
    pub(crate) fn new(base: Image, root: &Path, records: Vec<Record>) -> Self {
        let mut names = Names::of(&base);
        let mut open = BTreeMap::new();
        let root = root.to_str().unwrap();
        let relative = |path: &str| {
            let path = path.strip_prefix(root).unwrap();
            path.trim_matches('/').to_owned()
        };
        let mut steps = Vec::new();
        for (number, record) in records.into_iter().enumerate() {
            let has_failed = record.error != 0;
            match record.what {
                What::Sync { descriptor } if has_failed => steps.push(Step::FailedFlush {
                    node: open[&descriptor],
                }),
                _ if has_failed => {}
                What::Open {
                    descriptor,
                    path,
                    flags,
                } => {
                    let path = relative(&path);
                    let known = names.paths.get(&path).copied();
                    let node = known.unwrap_or_else(|| names.add(&path));
                    open.insert(descriptor, node);
                    if known.is_none() {
                        let (directory, name) = names.place(&path);
                        steps.push(Step::Enter {
                            directory,
                            name,
                            node,
                            is_directory: false,
                        });
                    } else if flags & O_TRUNC != 0 {
                        steps.push(Step::Size { node, bytes: 0 });
                    }
                }
                What::Write {
                    descriptor,
                    offset,
                    bytes,
                } => steps.push(Step::Write {
                    node: open[&descriptor],
                    offset,
                    bytes,
                }),
                What::Truncate { descriptor, length } => steps.push(Step::Size {
                    node: open[&descriptor],
                    bytes: length,
                }),
                What::Sync { descriptor } => steps.push(Step::Flush {
                    node: open[&descriptor],
                    record: number,
                }),
                What::Rename { from, to } => {
                    let (from, to) = (relative(&from), relative(&to));
                    let node = names.paths.remove(&from).unwrap();
                    steps.push(Step::Move {
                        from: names.place(&from),
                        to: names.place(&to),
                        node,
                    });
                    names.paths.insert(to, node);
                }
                What::Unlink { path } => {
                    let path = relative(&path);
                    names.paths.remove(&path).unwrap();
                    let (directory, name) = names.place(&path);
                    steps.push(Step::Remove { directory, name });
                }
                What::Mkdir { path } => {
                    let path = relative(&path);
                    // That the directory itself is there is taken for granted.
                    if path.is_empty() {
                        continue;
                    }
                    let node = names.add(&path);
                    let (directory, name) = names.place(&path);
                    steps.push(Step::Enter {
                        directory,
                        name,
                        node,
                        is_directory: true,
                    });
                }
                What::Read | What::List => {}
                What::Mark(mark) => steps.push(Step::Mark(mark)),
            }
        }
        Self { base, steps }
    }
}
