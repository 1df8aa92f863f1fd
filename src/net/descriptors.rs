//! Owns how many files and sockets the process may open. Systems give a process a low limit that it
//! may raise itself, because old programs could not bear a high one; without that a crowd of
//! strangers on the webhook port would leave none for subscribers and for the log.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit as far as the system lets this process, and returns it: `None` is no limit. A
/// system that refuses leaves what there is.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    }
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_high_as_it_gets() {
        let raised = raise_limit();
        assert_eq!(raised, getrlimit(Resource::Nofile).maximum);
        assert_eq!(raise_limit(), raised);
    }
}
