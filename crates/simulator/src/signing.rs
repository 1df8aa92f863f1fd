//! The keys of a simulator's apps and sources, as its callers see them: where they are published, how they
//! are rotated, and signatures of any body.

use std::sync::atomic::Ordering;

use serde_json::Value;

use super::{Error, SigningKey, Simulator, delivery, host, state::lock};

impl Simulator {
    /// The URL of an app's key set.
    #[must_use]
    pub fn jwks_url(&self, app_id: &str) -> String {
        format!("http://{}/apps/{app_id}{}", self.address, host::JWKS_PATH)
    }

    /// The URL of the public keys of a source of Verify or Notify, as PEM.
    #[must_use]
    pub fn pem_url(&self, source_id: &str) -> String {
        format!(
            "http://{}/sources/{source_id}{}",
            self.address,
            host::PEM_PATH
        )
    }

    /// An app's key set as it is served now.
    ///
    /// # Errors
    /// [`Error::UnknownApp`].
    pub fn jwks(&self, app_id: &str) -> Result<Value, Error> {
        Ok(host::published(&self.simulation, self.app(app_id)?))
    }

    /// The public keys of an app or source as PEM, the one that signs first.
    ///
    /// # Errors
    /// [`Error::UnknownApp`], [`Error::Key`].
    pub fn public_pem(&self, app_id: &str) -> Result<String, Error> {
        Ok(lock(&self.app(app_id)?.ring).pem()?)
    }

    /// How often an app's key set was asked for, refusals while it was down included.
    ///
    /// # Errors
    /// [`Error::UnknownApp`].
    pub fn jwks_fetches(&self, app_id: &str) -> Result<u64, Error> {
        Ok(self.app(app_id)?.jwks_fetches())
    }

    /// Stops serving an app's key set (503), or serves it again.
    ///
    /// # Errors
    /// [`Error::UnknownApp`].
    pub fn set_jwks_up(&self, app_id: &str, up: bool) -> Result<(), Error> {
        self.app(app_id)?.jwks_up.store(up, Ordering::Relaxed);
        Ok(())
    }

    /// Signs with another key from now on: the next of those given, or a new one. With overlap the
    /// former stays published; without it, it is gone at once. Returns the new key's id.
    ///
    /// # Errors
    /// [`Error::UnknownApp`], [`Error::Key`].
    pub async fn rotate_key(&self, app_id: &str, overlap: bool) -> Result<String, Error> {
        let app = self.app(app_id)?;
        let spare = lock(&app.spare).pop_front();
        let next = match spare {
            Some(key) => key,
            None => {
                let bits = self.simulation.options.key_bits;
                tokio::task::spawn_blocking(move || SigningKey::generate(bits))
                    .await
                    .map_err(|_| Error::Stopped)??
            }
        };
        let id = next.id().to_owned();
        lock(&app.ring).rotate(next, overlap);
        Ok(id)
    }

    /// The value of `X-Webhook-Signature` for any body, by the app's present key.
    ///
    /// # Errors
    /// [`Error::UnknownApp`], [`Error::Key`].
    pub async fn sign(&self, app_id: &str, body: &[u8]) -> Result<String, Error> {
        let body = bytes::Bytes::copy_from_slice(body);
        Ok(delivery::sign(&self.simulation, app_id, body).await?.header)
    }
}
