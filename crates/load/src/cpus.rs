//! Owns which CPUs the server runs on and which the load, so that neither is measured while it
//! waits for the other. A process inherits the CPUs of the thread that starts it, and a thread
//! those of its parent, so it is enough to move the thread that starts things.

use std::{fmt, num::NonZero, thread};

use super::{Error, Settings};

/// The CPUs of both sides.
#[derive(Clone, Debug)]
pub struct Split {
    all: Vec<usize>,
    sides: Result<Sides, &'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sides {
    server: Vec<usize>,
    load: Vec<usize>,
}

impl Split {
    /// # Errors
    /// [`Error::Settings`] when the server is to have more CPUs than would leave one to the load.
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let all = affinity::allowed();
        let sides = if !settings.pin {
            Err("server and load share all CPUs, as asked (--pin off)")
        } else if !affinity::SUPPORTED {
            Err("this system cannot pin processes to CPUs: server and load share all of them")
        } else if all.len() < 2 {
            Err("there is one CPU only: server and load share it")
        } else {
            Ok(Sides::new(&all, settings.server_cpus)?)
        };
        Ok(Self { all, sides })
    }

    /// The first CPU for the server and the second for the load, on a machine of any size.
    ///
    /// # Errors
    /// [`Error::Settings`] when there is one CPU only, or the system cannot pin.
    pub fn pair() -> Result<Self, Error> {
        let all = affinity::allowed();
        let sides = match all.as_slice() {
            [server, load, ..] if affinity::SUPPORTED => Ok(Sides {
                server: vec![*server],
                load: vec![*load],
            }),
            _ => {
                let text = "two CPUs are needed to pin to: one for the server and one for the load";
                return Err(Error::Settings(text.to_owned()));
            }
        };
        Ok(Self { all, sides })
    }

    /// The same for servers that run beside the load, because another server is measured on the CPUs of the
    /// server.
    #[must_use]
    pub fn beside_load(&self) -> Self {
        let beside = |sides: &Sides| Sides {
            server: sides.load.clone(),
            load: sides.load.clone(),
        };
        Self {
            all: self.all.clone(),
            sides: self.sides.as_ref().map(beside).map_err(|why| *why),
        }
    }

    /// Why both sides share the CPUs, if they do.
    pub(super) fn unpinned(&self) -> Option<&'static str> {
        self.sides.as_ref().err().copied()
    }

    /// How many CPUs the server can use.
    pub(super) fn server_cpus(&self) -> usize {
        self.sides
            .as_ref()
            .map_or_else(|_| self.all.len(), |sides| sides.server.len())
            .max(1)
    }

    /// How many CPUs the load can use.
    pub(super) fn load_cpus(&self) -> usize {
        self.sides
            .as_ref()
            .map_or_else(|_| self.all.len(), |sides| sides.load.len())
            .max(1)
    }

    /// All CPUs that this process may use.
    pub(super) fn all(&self) -> &[usize] {
        &self.all
    }

    /// How many CPUs there are for what is prepared beforehand.
    pub(super) fn all_cpus(&self) -> usize {
        self.all.len().max(1)
    }

    /// Moves this thread, and what it starts from now on, to the load's CPUs.
    pub fn enter_load(&self) {
        if let Ok(sides) = &self.sides {
            affinity::enter(&sides.load);
        }
    }

    /// Lets this thread, and what it starts from now on, run everywhere.
    pub fn enter_all(&self) {
        if self.sides.is_ok() {
            affinity::enter(&self.all);
        }
    }

    /// Makes so many things on all CPUs, each from its number, before anything is measured.
    ///
    /// # Errors
    /// The first of `make`'s.
    pub fn make_all<T: Send, E: Send>(
        &self,
        count: usize,
        make: impl Fn(usize) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        self.enter_all();
        let (share, make) = (count.div_ceil(self.all_cpus()).max(1), &make);
        let made = thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .step_by(share)
                .map(|first| {
                    let numbers = first..count.min(first + share);
                    scope.spawn(move || numbers.map(make).collect::<Result<Vec<T>, E>>())
                })
                .collect();
            let mut all = Vec::with_capacity(count);
            // All are joined, also after a failure.
            let pieces: Vec<_> = threads
                .into_iter()
                .map(|thread| join(thread.join()))
                .collect();
            for piece in pieces {
                all.extend(piece?);
            }
            Ok(all)
        });
        self.enter_load();
        made
    }

    /// Starts something on the server's CPUs.
    pub fn on_server<T>(&self, start: impl FnOnce() -> T) -> T {
        if let Ok(sides) = &self.sides {
            affinity::enter(&sides.server);
        }
        let started = start();
        self.enter_load();
        started
    }
}

/// What a thread of ours came to. One that panicked has said so on stderr.
pub(super) fn join<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// For people: who is where.
impl fmt::Display for Split {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |cpus: &[usize]| {
            let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            cpus.join(",")
        };
        match &self.sides {
            Ok(sides) => write!(
                formatter,
                "server on CPU {}, load on CPU {}",
                list(&sides.server),
                list(&sides.load)
            ),
            Err(_) => formatter.write_str("not pinned"),
        }
    }
}

impl Sides {
    fn new(all: &[usize], server_cpus: Option<usize>) -> Result<Self, Error> {
        let count = server_cpus.unwrap_or(all.len() / 2);
        match all.split_at_checked(count) {
            Some((server, load)) if !server.is_empty() && !load.is_empty() => Ok(Self {
                server: server.to_vec(),
                load: load.to_vec(),
            }),
            Some(_) | None => Err(Error::Settings(format!(
                "the server cannot have {count} of {} CPUs: at least one is for it and one for \
                 the load",
                all.len()
            ))),
        }
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) const SUPPORTED: bool = true;

    pub(super) fn allowed() -> Vec<usize> {
        let Ok(set) = sched_getaffinity(None) else {
            return (0..super::parallelism()).collect();
        };
        (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect()
    }

    pub(super) fn enter(cpus: &[usize]) {
        let mut set = CpuSet::new();
        for &cpu in cpus {
            set.set(cpu);
        }
        // These CPUs were allowed a moment ago. If one was taken away since, running elsewhere is
        // better than not running.
        let _ = sched_setaffinity(None, &set);
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    pub(super) const SUPPORTED: bool = false;

    pub(super) fn allowed() -> Vec<usize> {
        (0..super::parallelism()).collect()
    }

    pub(super) fn enter(_cpus: &[usize]) {}
}

fn parallelism() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_on_all_cpus_is_in_order_or_an_error() {
        let settings = Settings::unpinned();
        let split = Split::new(&settings).unwrap();
        for count in [0, 1, 2, 3, 100, 101] {
            let made: Result<Vec<usize>, ()> = split.make_all(count, Ok);
            assert!(made.unwrap().into_iter().eq(0..count));
        }
        let failed = split.make_all(100, |number| match number {
            70 => Err(number),
            _ => Ok(()),
        });
        assert_eq!(failed, Err(70));
    }

    #[test]
    fn a_server_beside_the_load_has_its_cpus() {
        let split = Split {
            all: vec![0, 1, 2],
            sides: Ok(Sides::new(&[0, 1, 2], Some(1)).unwrap()),
        };
        let sides = split.beside_load().sides.unwrap();
        assert_eq!((sides.server, sides.load), (vec![1, 2], vec![1, 2]));
        let unpinned = Split::new(&Settings::unpinned()).unwrap();
        assert!(unpinned.beside_load().unpinned().is_some());
    }

    #[test]
    fn both_sides_get_a_cpu() {
        let sides = |count, server_cpus| {
            let all: Vec<usize> = (0..count).collect();
            Sides::new(&all, server_cpus).map(|sides| (sides.server.len(), sides.load.len()))
        };
        assert_eq!(sides(2, None).unwrap(), (1, 1));
        assert_eq!(sides(7, None).unwrap(), (3, 4));
        assert_eq!(sides(8, Some(1)).unwrap(), (1, 7));
        for server_cpus in [0, 8, 9] {
            assert!(sides(8, Some(server_cpus)).is_err());
        }
    }
}
