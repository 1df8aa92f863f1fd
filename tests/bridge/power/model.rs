//! A disk that loses its power: what may be on it after a loss, given everything that a process did
//! to its files and what it flushed.
//!
//! A flush of a file makes its bytes and its size durable, a flush of a directory the names in it.
//! Of what was not flushed anything may be there: any sectors of a write, in any order; the old size
//! of a file or a later one, with zeros or stale bytes where nothing was written; each new name, each
//! name that was removed, each file that got another name. Sectors are written whole.

use std::collections::{BTreeMap, BTreeSet};

use prelude_bridge::simulator::random::Random;

use super::history::{History, Image, Names, Node, ROOT, Step};

impl History {
    /// The disk before the first step.
    pub(crate) fn disk(&self) -> Disk<'_> {
        let names = Names::of(&self.base);
        let mut disk = Disk::default();
        for (path, &node) in names.paths.iter().filter(|(path, _)| !path.is_empty()) {
            let (directory, name) = names.place(path);
            disk.directories
                .entry(directory)
                .or_default()
                .insert(name, node);
            if let Some(bytes) = self.base.files.get(path) {
                disk.files.entry(node).or_default().durable = bytes.clone();
            }
        }
        for path in &self.base.directories {
            disk.is_directory.insert(names.paths[path]);
        }
        disk
    }
}

const SECTOR_BYTES: [usize; 2] = [512, 4_096];

/// What happens to what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing of it is there.
    Dropped,
    /// All of it is there, except for some sectors of the last write.
    LastTorn,
    /// Any of it is there.
    Any,
    /// Only this much from the beginning, and then nothing.
    Prefix,
    /// All bytes are there, but a file ends where it did.
    OldSizes,
    /// All sizes are there, but nothing of the bytes.
    NewSizes,
}

const FATES: [Fate; 6] = [
    Fate::Dropped,
    Fate::LastTorn,
    Fate::Any,
    Fate::Prefix,
    Fate::OldSizes,
    Fate::NewSizes,
];

/// A disk, and what it has not flushed yet.
#[derive(Default)]
pub(crate) struct Disk<'a> {
    directories: BTreeMap<Node, BTreeMap<String, Node>>,
    is_directory: BTreeSet<Node>,
    files: BTreeMap<Node, File<'a>>,
    /// Changes of names.
    pending: Vec<&'a Step>,
    /// The system believes after a failed flush that nothing is left to be flushed, as Linux does.
    pub(crate) forgets: bool,
    /// A file that got longer may have bytes of another one in it.
    pub(crate) shows_stale: bool,
}

#[derive(Default)]
struct File<'a> {
    durable: Vec<u8>,
    pending: Vec<&'a Step>,
}

impl<'a> Disk<'a> {
    /// Does the next step.
    pub(crate) fn apply(&mut self, step: &'a Step) {
        match step {
            Step::Enter {
                node, is_directory, ..
            } => {
                if *is_directory {
                    self.is_directory.insert(*node);
                }
                self.pending.push(step);
            }
            Step::Remove { .. } | Step::Move { .. } => self.pending.push(step),
            Step::Write { node, .. } | Step::Size { node, .. } => {
                self.files.entry(*node).or_default().pending.push(step);
            }
            Step::Flush { node, .. } => {
                let file = self.files.entry(*node).or_default();
                for change in std::mem::take(&mut file.pending) {
                    change_whole(&mut file.durable, change);
                }
                let is_here = |step: &&&Step| match step {
                    Step::Enter { directory, .. } | Step::Remove { directory, .. } => {
                        directory == node
                    }
                    Step::Move { from, to, .. } => from.0 == *node || to.0 == *node,
                    _ => false,
                };
                let (flushed, others): (Vec<_>, Vec<_>) =
                    self.pending.iter().partition(|step| is_here(step));
                self.pending = others;
                for step in flushed {
                    rename(&mut self.directories, step);
                }
            }
            Step::FailedFlush { node } if self.forgets => {
                self.files.entry(*node).or_default().pending.clear();
            }
            Step::FailedFlush { .. } | Step::Mark(_) => {}
        }
    }

    /// What may be there if the power is lost now.
    pub(crate) fn lose(&self, random: &mut Random) -> Image {
        let fate = FATES[random.below(FATES.len())];
        let sector = SECTOR_BYTES[random.below(2)];
        let mut directories = self.directories.clone();
        let kept = random.below(self.pending.len() + 1);
        for (place, &step) in self.pending.iter().enumerate() {
            let is_there = match fate {
                Fate::Dropped => false,
                Fate::LastTorn | Fate::OldSizes | Fate::NewSizes => true,
                Fate::Any => random.chance(0.5),
                Fate::Prefix => place < kept,
            };
            if is_there {
                rename(&mut directories, step);
            }
        }
        let shows_stale = self.shows_stale && random.chance(0.25);
        let stale = shows_stale.then(|| self.stale(random));
        let nothing = File::default();
        let mut image = Image::default();
        let mut ahead = vec![(String::new(), ROOT)];
        while let Some((path, node)) = ahead.pop() {
            for (name, &node) in directories.get(&node).into_iter().flatten() {
                let path = format!("{path}{name}");
                if self.is_directory.contains(&node) {
                    ahead.push((format!("{path}/"), node));
                    image.directories.insert(path);
                } else {
                    let file = self.files.get(&node).unwrap_or(&nothing);
                    let bytes = file.lose(random, fate, sector, stale.as_deref());
                    image.files.insert(path, bytes);
                }
            }
        }
        image
    }

    /// The bytes of some file: they may be found where nothing was written yet.
    fn stale(&self, random: &mut Random) -> Vec<u8> {
        let files: Vec<&File<'_>> = self.files.values().collect();
        let mut stale = match files.len() {
            0 => Vec::new(),
            count => files[random.below(count)].durable.clone(),
        };
        if stale.is_empty() {
            stale = vec![0xE5; 4_096];
        }
        stale
    }
}

impl File<'_> {
    fn lose(
        &self,
        random: &mut Random,
        fate: Fate,
        sector: usize,
        stale: Option<&[u8]>,
    ) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let count = self.pending.len();
        let kept = random.below(count + 1);
        let mut sizes = vec![bytes.len()];
        let mut size = bytes.len();
        for (place, &step) in self.pending.iter().enumerate() {
            size = match step {
                Step::Write { offset, bytes, .. } => size.max(offset + bytes.len()),
                Step::Size { bytes, .. } => *bytes,
                _ => size,
            };
            sizes.push(size);
            let is_torn = match fate {
                Fate::Dropped => continue,
                Fate::LastTorn => place + 1 == count,
                Fate::Any => true,
                Fate::Prefix if place >= kept => continue,
                Fate::Prefix | Fate::OldSizes => false,
                Fate::NewSizes => {
                    if let Step::Size { .. } = step {
                        change_whole(&mut bytes, step);
                    }
                    continue;
                }
            };
            if is_torn {
                tear(&mut bytes, step, random, sector, stale);
            } else {
                change_whole(&mut bytes, step);
            }
        }
        let end = match fate {
            Fate::Dropped | Fate::OldSizes => sizes[0],
            Fate::LastTorn | Fate::Any => sizes[random.below(sizes.len())],
            Fate::Prefix => sizes[kept],
            Fate::NewSizes => size,
        };
        grow(&mut bytes, end, stale);
        bytes.truncate(end);
        bytes
    }
}

fn rename(directories: &mut BTreeMap<Node, BTreeMap<String, Node>>, step: &Step) {
    match step {
        Step::Enter {
            directory,
            name,
            node,
            ..
        } => {
            let names = directories.entry(*directory).or_default();
            names.insert(name.clone(), *node);
        }
        Step::Remove { directory, name } => {
            directories.entry(*directory).or_default().remove(name);
        }
        Step::Move { from, to, node } => {
            directories.entry(from.0).or_default().remove(&from.1);
            let names = directories.entry(to.0).or_default();
            names.insert(to.1.clone(), *node);
        }
        _ => {}
    }
}

fn grow(bytes: &mut Vec<u8>, size: usize, stale: Option<&[u8]>) {
    let from = bytes.len();
    if size <= from {
        return;
    }
    match stale {
        Some(stale) => {
            while bytes.len() < size {
                let at = bytes.len() % stale.len();
                let end = stale.len().min(at + size - bytes.len());
                bytes.extend_from_slice(&stale[at..end]);
            }
        }
        // Without a loop over bytes, which takes long where nothing is optimised.
        None => bytes.extend_from_slice(&vec![0; size - from]),
    }
}

fn change_whole(content: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write { offset, bytes, .. } => {
            grow(content, offset + bytes.len(), None);
            content[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        Step::Size { bytes, .. } => {
            content.truncate(*bytes);
            grow(content, *bytes, None);
        }
        _ => {}
    }
}

/// Does a part of a change.
fn tear(
    content: &mut Vec<u8>,
    step: &Step,
    random: &mut Random,
    sector: usize,
    stale: Option<&[u8]>,
) {
    let Step::Write { offset, bytes, .. } = step else {
        if random.chance(0.5) {
            change_whole(content, step);
        }
        return;
    };
    let end = offset + bytes.len();
    let (first, sectors) = (offset / sector, end.div_ceil(sector) - offset / sector);
    let (way, border) = (random.below(5), random.below(sectors + 1));
    for place in 0..sectors {
        let is_there = match way {
            0 => place < border,
            1 => place >= border,
            2 => place != border,
            3 => place == border,
            _ => random.chance(0.5),
        };
        if is_there {
            let from = ((first + place) * sector).max(*offset);
            let to = ((first + place + 1) * sector).min(end);
            grow(content, to, stale);
            content[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
        }
    }
}
