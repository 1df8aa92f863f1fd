//! Owns how long a connection may stay that nobody needs: one that shows no credential where there
//! are some, and one on which nothing is called. Knows nothing of HTTP/2.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{credentials::Credentials, metrics::Closure, net::slots::Standing};

/// How long a connection that was told to go may take, if it has nothing open.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From its beginning to a credential, where there are credentials.
    pub(super) credential: Duration,
    /// From the end of its last call to the next one.
    pub(super) idle: Duration,
}

/// One connection's stay.
pub(super) struct Tenure {
    timeouts: Timeouts,
    standing: Standing,
    credentials: Credentials,
    calls: Arc<OpenCalls>,
    began_at: Instant,
}

#[derive(Debug)]
struct OpenCalls {
    count: AtomicUsize,
    /// When the last one ended, or the connection began.
    idle_since: Mutex<Instant>,
}

/// An open call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall(Arc<OpenCalls>);

impl Tenure {
    pub(super) fn new(timeouts: Timeouts, standing: Standing, credentials: Credentials) -> Self {
        let began_at = Instant::now();
        Self {
            timeouts,
            standing,
            credentials,
            calls: Arc::new(OpenCalls {
                count: AtomicUsize::new(0),
                idle_since: Mutex::new(began_at),
            }),
            began_at,
        }
    }

    /// A call begins. It lasts until the result is dropped.
    pub(super) fn call(&self) -> OpenCall {
        self.calls.count.fetch_add(1, Ordering::AcqRel);
        OpenCall(Arc::clone(&self.calls))
    }

    /// Resolves when the connection has to go. `told_at` is when it was told so: then it may still
    /// end what it has open, unless it never showed a credential.
    ///
    /// Nothing is remembered between two calls: the same is awaited wherever the first was dropped.
    pub(super) async fn over(&self, told_at: Option<Instant>) -> Closure {
        match told_at {
            None => self.stays().await,
            Some(told_at) => self.leaves(told_at).await,
        }
    }

    async fn stays(&self) -> Closure {
        loop {
            let now = Instant::now();
            let idle_at = self.idle_since().unwrap_or(now) + self.timeouts.idle;
            if idle_at <= now {
                return Closure::Idle;
            }
            let mut next = idle_at;
            if !self.standing.is_admitted() {
                let credential_at = self.began_at + self.timeouts.credential;
                if credential_at > now {
                    next = next.min(credential_at);
                } else if self.credentials.is_configured() {
                    return Closure::NoCredential;
                } else {
                    // There may be credentials later.
                    next = next.min(now + self.timeouts.credential);
                }
            }
            sleep_until(next).await;
        }
    }

    async fn leaves(&self, told_at: Instant) -> Closure {
        let mut next = told_at + LEAVING_TIMEOUT;
        loop {
            sleep_until(next).await;
            if !self.standing.is_admitted() && self.credentials.is_configured() {
                return Closure::NoCredential;
            }
            if self.idle_since().is_some() {
                return Closure::Idle;
            }
            // A call that came at the last moment is served to its end.
            next = Instant::now() + LEAVING_TIMEOUT;
        }
    }

    /// Since when nothing is open.
    fn idle_since(&self) -> Option<Instant> {
        let since = self.calls.idle_since.lock();
        let since = since.unwrap_or_else(PoisonError::into_inner);
        (self.calls.count.load(Ordering::Acquire) == 0).then_some(*since)
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let since = self.0.idle_since.lock();
        *since.unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures_util::future::poll_immediate;

    use super::*;
    use crate::credentials;

    const TIMEOUTS: Timeouts = Timeouts {
        credential: Duration::from_secs(60),
        idle: Duration::from_secs(900),
    };

    /// With a credentials file that nobody is in.
    async fn guarded() -> Credentials {
        let options = credentials::Options {
            file: Some(PathBuf::from("/nonexistent/credentials.toml")),
            file_is_named: true,
            ..credentials::Options::default()
        };
        Credentials::open(options).await.unwrap()
    }

    fn tenure(credentials: Credentials) -> Tenure {
        Tenure::new(TIMEOUTS, Standing::default(), credentials)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_credential_goes_at_the_deadline_whatever_it_has_open() {
        let tenure = tenure(guarded().await);
        let began = Instant::now();
        let _call = tenure.call();
        assert_eq!(tenure.over(None).await, Closure::NoCredential);
        assert_eq!(began.elapsed().as_secs(), 60);
        let told_at = Instant::now();
        assert_eq!(tenure.over(Some(told_at)).await, Closure::NoCredential);
        assert_eq!(told_at.elapsed(), LEAVING_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_credential_goes_when_it_was_idle_for_long() {
        let tenure = tenure(guarded().await);
        tenure.standing.prove();
        let call = tenure.call();
        let over = tokio::time::timeout(Duration::from_secs(10_000), tenure.over(None));
        assert!(over.await.is_err());
        drop(call);
        let ended = Instant::now();
        assert_eq!(tenure.over(None).await, Closure::Idle);
        assert_eq!(ended.elapsed().as_secs(), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_let_in_without_a_credential_may_stay() {
        let tenure = tenure(guarded().await);
        tenure.standing.admit();
        let began = Instant::now();
        assert_eq!(tenure.over(None).await, Closure::Idle);
        assert_eq!(began.elapsed().as_secs(), 900);
        assert_eq!(tenure.over(Some(began)).await, Closure::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_are_no_credentials_nobody_has_to_show_one() {
        let tenure = tenure(Credentials::anonymous());
        let began = Instant::now();
        assert_eq!(tenure.over(None).await, Closure::Idle);
        assert_eq!(began.elapsed().as_secs(), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_came_at_the_last_moment_is_served_to_its_end() {
        let tenure = tenure(guarded().await);
        tenure.standing.prove();
        let call = tenure.call();
        let told_at = Instant::now();
        let mut over = Box::pin(tenure.over(Some(told_at)));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(poll_immediate(&mut over).await.is_none());
        drop(call);
        assert_eq!(over.await, Closure::Idle);
    }
}
