//! Owns how a measurement is ended before its time: a flag that its loops look at, and the server
//! process, which must not outlive it. Knows nothing of signals.

use std::{
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::Error;

/// Tells a measurement to end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stopped: AtomicBool,
    /// At most one server runs at a time.
    server: Mutex<Option<Child>>,
}

impl Stop {
    /// Ends the server at once and the measurement as soon as it notices.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.end_server();
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if self.0.stopped.load(Ordering::SeqCst) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Takes charge of a server that was just started.
    pub(super) fn guard_server(&self, child: Child) -> Result<(), Error> {
        let former = self.server().replace(child);
        debug_assert!(former.is_none(), "one server at a time");
        // Between the start and here it may have been told to stop.
        self.check().inspect_err(|_| self.end_server())
    }

    /// Kills the server and waits until it is gone. Its log is thrown away anyhow.
    pub(super) fn end_server(&self) {
        if let Some(mut child) = self.server().take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeper() -> Child {
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_stop_ends_the_server_and_every_later_one() {
        let stop = Stop::default();
        stop.guard_server(sleeper()).unwrap();
        assert!(stop.check().is_ok());
        stop.stop();
        assert!(stop.server().is_none());
        assert!(matches!(stop.check(), Err(Error::Interrupted)));
        let late = stop.guard_server(sleeper());
        assert!(matches!(late, Err(Error::Interrupted)));
        assert!(stop.server().is_none(), "it was ended too");
    }
}
