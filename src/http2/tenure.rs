//! Owns the open calls of a connection, and how long it may stay: one that shows no credential where there
//! are some, one on which nothing is called, and any until its age. Knows nothing of HTTP/2.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::{
    credentials::Credentials,
    metrics::{Closure, Metrics, OpenConnection},
    net::slots::Standing,
};

/// How long a connection that was told to go may take, if it has nothing open.
const LEAVING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From its beginning to a credential, where there are credentials.
    pub(super) credential: Duration,
    /// From the end of its last call to the next one.
    pub(super) idle: Duration,
    /// From its beginning to the time from which on it takes no new calls.
    pub(super) age: Option<Duration>,
}

/// One connection's stay.
pub(super) struct Tenure {
    timeouts: Timeouts,
    standing: Standing,
    credentials: Credentials,
    calls: Arc<Mutex<OpenCalls>>,
    began_at: Instant,
    /// How many calls it may have.
    calls_max: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct OpenCalls {
    count: usize,
    /// When the last one ended, or the connection began.
    idle_since: Instant,
    /// Held while the connection has as many as it may: more wait in its client, where nobody here sees
    /// them.
    full: Option<OpenConnection>,
}

/// An open call of a connection.
#[derive(Debug)]
pub(super) struct OpenCall {
    calls: Arc<Mutex<OpenCalls>>,
    calls_max: usize,
}

impl Tenure {
    /// A connection that may have so many calls at a time.
    pub(super) fn new(
        timeouts: Timeouts,
        calls_max: usize,
        standing: Standing,
        credentials: Credentials,
        metrics: Arc<Metrics>,
    ) -> Self {
        let began_at = Instant::now();
        Self {
            timeouts,
            standing,
            credentials,
            calls: Arc::new(Mutex::new(OpenCalls {
                count: 0,
                idle_since: began_at,
                full: None,
            })),
            began_at,
            calls_max,
            metrics,
        }
    }

    /// A call begins. It lasts until the result is dropped.
    pub(super) fn call(&self) -> OpenCall {
        let mut calls = lock(&self.calls);
        calls.count += 1;
        if calls.count >= self.calls_max && calls.full.is_none() {
            calls.full = Some(self.metrics.connection_full());
        }
        OpenCall {
            calls: Arc::clone(&self.calls),
            calls_max: self.calls_max,
        }
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
            if let Some(age) = self.timeouts.age {
                let aged_at = self.began_at + age;
                if aged_at <= now {
                    return Closure::Age;
                }
                next = next.min(aged_at);
            }
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
            // A call that came at the last moment is served to its end, and a long one to its own. HTTP
            // closes the connection with its last call, so there is ever less reason to ask.
            let now = Instant::now();
            next = now + (now - told_at);
        }
    }

    /// Since when nothing is open.
    fn idle_since(&self) -> Option<Instant> {
        let calls = lock(&self.calls);
        (calls.count == 0).then_some(calls.idle_since)
    }
}

fn lock(calls: &Mutex<OpenCalls>) -> MutexGuard<'_, OpenCalls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut calls = lock(&self.calls);
        calls.idle_since = Instant::now();
        calls.count -= 1;
        if calls.count < self.calls_max {
            calls.full = None;
        }
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
        age: None,
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
        counted_tenure(credentials, &Arc::default())
    }

    fn counted_tenure(credentials: Credentials, metrics: &Arc<Metrics>) -> Tenure {
        let metrics = Arc::clone(metrics);
        Tenure::new(TIMEOUTS, 2, Standing::default(), credentials, metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_all_its_calls_is_counted_until_one_ends() {
        let metrics = Arc::<Metrics>::default();
        let is_counted = || {
            let page = metrics.render();
            page.contains("prelude_bridge_grpc_connections_at_stream_limit 1")
        };
        let tenure = counted_tenure(Credentials::anonymous(), &metrics);
        let first = tenure.call();
        assert!(!is_counted());
        let second = tenure.call();
        assert!(is_counted());
        drop(first);
        assert!(!is_counted());
        let _third = tenure.call();
        assert!(is_counted());
        drop((tenure, second));
        assert!(!is_counted());
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
    async fn a_connection_with_an_age_goes_then_and_its_calls_go_on() {
        let mut tenure = tenure(guarded().await);
        tenure.timeouts.age = Some(Duration::from_secs(90));
        tenure.standing.prove();
        let began = Instant::now();
        let call = tenure.call();
        assert_eq!(tenure.over(None).await, Closure::Age);
        assert_eq!(began.elapsed().as_secs(), 90);
        let mut leaving = Box::pin(tenure.over(Some(Instant::now())));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert!(poll_immediate(&mut leaving).await.is_none());
        drop(call);
        assert_eq!(leaving.await, Closure::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_idle_before_its_age_goes_then() {
        let mut tenure = tenure(guarded().await);
        tenure.timeouts.age = Some(TIMEOUTS.idle + Duration::from_secs(1));
        tenure.standing.prove();
        assert_eq!(tenure.over(None).await, Closure::Idle);
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
