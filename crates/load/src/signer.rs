//! Owns the signing key of the load, and turns batches into the bytes of whole requests before
//! anything is measured: signing costs twenty times what verifying does.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair as _, RSA_PSS_SHA256, RsaKeyPair},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::{Context, Error, events::APP_ID};

/// The whole bytes of a POST with a signed batch.
pub(super) type Request = Vec<u8>;

/// What Prelude's signature header begins with.
const SIGNATURE_PREFIX: &str = "rsassa-pss-sha256=";

/// A key that signs batches: RSA with 2048 bits, as Prelude's most likely are.
pub struct Key(RsaKeyPair);

impl Key {
    /// A fresh one.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn generate() -> Result<Self, Error> {
        RsaKeyPair::generate(KeySize::Rsa2048)
            .map(Self)
            .map_err(failed)
    }

    /// The public key as X.509 has it (RFC 5280, `SubjectPublicKeyInfo`).
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn public_der(&self) -> Result<Vec<u8>, Error> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().map_err(failed)?;
        Ok(der.as_ref().to_vec())
    }

    /// The same as PEM (RFC 7468).
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn public_pem(&self) -> Result<String, Error> {
        let text = STANDARD.encode(self.public_der()?);
        let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
        let lines: Vec<_> = lines.collect();
        Ok(format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        ))
    }

    /// A signature as Prelude's: RSA-PSS with SHA-256.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn sign(&self, body: &[u8]) -> Result<Vec<u8>, Error> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), body, &mut signature)
            .map_err(failed)?;
        Ok(signature)
    }

    /// The bytes of a POST with this body, to the webhook of an app.
    ///
    /// # Errors
    /// [`Error::Key`].
    pub fn request(&self, app_id: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
        let mut request = format!(
            "POST /webhooks/{app_id} HTTP/1.1\r\nHost: bridge\r\n\
             Content-Type: application/json\r\n\
             X-Webhook-Signature: {SIGNATURE_PREFIX}{}\r\nContent-Length: {}\r\n\r\n",
            URL_SAFE_NO_PAD.encode(self.sign(body)?),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        Ok(request)
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Key(error.to_string())
}

impl Context<'_> {
    /// Signs `count` batches of `batch_events` each, numbered from `first` on, with all CPUs.
    pub(super) fn prepare(
        &self,
        first: u64,
        count: usize,
        batch_events: u64,
    ) -> Result<Vec<Request>, Error> {
        self.progress(format_args!("signing {count} batches of {batch_events}"))?;
        self.split.make_all(count, |batch| {
            self.stop.check()?;
            let start = first + batch as u64 * batch_events;
            self.request(start..start + batch_events)
        })
    }

    /// Signs one batch with the events of these numbers.
    pub(super) fn request(&self, numbers: Range<u64>) -> Result<Request, Error> {
        self.key.request(APP_ID, &self.events.body(numbers))
    }
}

/// Hands out the indices of what is to be sent, to whoever comes next.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicUsize);

impl Turn {
    pub(super) fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use rsa::{Pss, RsaPublicKey, pkcs8::DecodePublicKey as _};
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn a_request_carries_a_signature_that_the_published_key_verifies() {
        let key = Key::generate().unwrap();
        let request = key.request("bench", b"{}").unwrap();
        let text = String::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{}");
        assert!(head.ends_with("Content-Length: 2"), "{head}");
        let (_, rest) = head.split_once(SIGNATURE_PREFIX).unwrap();
        let signature = URL_SAFE_NO_PAD
            .decode(rest.lines().next().unwrap())
            .unwrap();
        let public = RsaPublicKey::from_public_key_pem(&key.public_pem().unwrap()).unwrap();
        let digest = Sha256::digest(b"{}");
        public
            .verify(Pss::new::<Sha256>(), &digest, &signature)
            .unwrap();
    }
}
