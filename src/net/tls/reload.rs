//! Owns when a port's certificate is read again, and what is said about it. It goes by what is in
//! the files, so it does not matter how they are replaced: written over, renamed, or by a link to
//! another directory, as Kubernetes does.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    material::{Contents, Digest, Fault, Leaf, Loaded},
};
use crate::plain;

/// How often the files are looked at: a few kilobytes that the system has in memory anyway.
const INTERVAL: Duration = Duration::from_secs(1);

/// Replaces a port's certificate when its files change.
///
/// A file that is written over can be read halfway, and half a chain or list of issuers is as valid as
/// the whole: new files are used once they are the same at two looks, one after the other.
///
/// What cannot be used changes nothing: the last good certificate stays, and the files are looked
/// at again. A certificate and its key are two files, and are seldom written at once, so a fault is
/// reported only when it is still there at the next look, and then once.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// The state of the files that is in use.
    digest: Digest,
    /// Their state at the last look, if they could be read.
    seen: Option<Digest>,
    leaf: Leaf,
    trouble: Option<Trouble>,
    /// Whether it was said that the certificate in use has expired.
    is_expiry_told: bool,
}

#[derive(Debug)]
struct Trouble {
    message: String,
    is_told: bool,
}

/// What a look at the files came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Unchanged,
    /// They can be used, and may still be written.
    Changed,
    Replaced,
    Faulty,
}

impl Watch {
    pub(super) fn new(shared: Arc<Shared>, loaded: &Loaded) -> Self {
        let mut watch = Self {
            shared,
            digest: loaded.digest,
            seen: None,
            leaf: loaded.leaf.clone(),
            trouble: None,
            is_expiry_told: false,
        };
        watch.measure();
        watch.warn_of_expiry();
        watch.warn_of_misfit();
        watch
    }

    /// The certificate in use.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// Looks after the files until `shutdown` is cancelled.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            // Files can be on a disk or a network that is slow.
            let look = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match look.await {
                Ok(watch) => self = watch,
                Err(error) => {
                    return tracing::error!(%error, "certificates are not looked after any more");
                }
            }
        }
    }

    pub(super) fn look(&mut self) -> Look {
        let seen = self.seen.take();
        let read = Contents::read(&self.shared.options).and_then(|contents| {
            let digest = contents.digest();
            self.seen = Some(digest);
            if digest == self.digest {
                return Ok(None);
            }
            contents.load(&self.shared.options).map(Some)
        });
        let look = match read {
            Ok(None) => {
                self.mended(false);
                Look::Unchanged
            }
            Ok(Some(_)) if self.seen != seen => Look::Changed,
            Ok(Some(loaded)) => {
                self.mended(true);
                self.replace(loaded);
                Look::Replaced
            }
            Err(fault) => {
                self.report(&fault);
                Look::Faulty
            }
        };
        self.warn_of_expiry();
        look
    }

    fn replace(&mut self, loaded: Loaded) {
        let Loaded {
            config,
            leaf,
            digest,
        } = loaded;
        self.shared.replace(config);
        (self.digest, self.leaf, self.is_expiry_told) = (digest, leaf, false);
        self.measure();
        self.warn_of_misfit();
        tracing::info!(
            listener = self.shared.listener,
            not_after = %self.leaf.not_after,
            "the TLS certificate was replaced; new connections get it"
        );
    }

    fn report(&mut self, fault: &Fault) {
        let message = fault.to_string();
        match &mut self.trouble {
            Some(trouble) if trouble.message == message => {
                if !trouble.is_told {
                    trouble.is_told = true;
                    tracing::error!(
                        listener = self.shared.listener,
                        error = plain::configured(&message),
                        "the TLS files changed and cannot be used; the old ones stay in use"
                    );
                }
            }
            _ => {
                self.trouble = Some(Trouble {
                    message,
                    is_told: false,
                });
            }
        }
    }

    fn mended(&mut self, has_changed: bool) {
        let was_told = self.trouble.take().is_some_and(|trouble| trouble.is_told);
        if was_told && !has_changed {
            tracing::info!(
                listener = self.shared.listener,
                "the TLS files are those in use again"
            );
        }
    }

    fn measure(&self) {
        let not_after = self.leaf.not_after.as_duration().as_secs_f64();
        let Shared {
            listener, metrics, ..
        } = &*self.shared;
        metrics.certificate_used(listener, not_after);
    }

    fn warn_of_misfit(&self) {
        if let Some(reason) = self.leaf.unfit() {
            tracing::warn!(
                listener = self.shared.listener,
                "{reason}; {}",
                Leaf::fitting()
            );
        }
    }

    fn warn_of_expiry(&mut self) {
        if self.is_expiry_told {
            return;
        }
        if let Some(complaint) = self.leaf.complaint(Timestamp::now()) {
            self.is_expiry_told = true;
            tracing::warn!(
                listener = self.shared.listener,
                "{complaint}: clients will refuse it; replace its file"
            );
        }
    }
}
