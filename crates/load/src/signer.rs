//! Owns the signing key of the load, and turns batches into the bytes of whole requests before
//! anything is measured: signing costs twenty times what verifying does.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{RSA_PSS_SHA256, RsaKeyPair},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

use super::{Context, Error, events::APP_ID};
use prelude_bridge_simulator::keys::{KeyRing, SIGNATURE_PREFIX, SetStyle, SigningKey};

/// What Prelude's keys most likely have, and what the limits are measured with.
const KEY_BITS: usize = 2048;

/// The whole bytes of a POST with a signed batch.
pub(super) type Request = Vec<u8>;

/// A key that signs batches.
pub(super) struct Key {
    /// The simulator's implementation publishes it …
    published: SigningKey,
    /// … and this one signs, several times faster.
    pair: RsaKeyPair,
}

impl Key {
    pub(super) fn generate() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Key(error.to_string());
        let published = SigningKey::generate(KEY_BITS).map_err(|error| failed(&error))?;
        let pem = published.to_pem().map_err(|error| failed(&error))?;
        let base64: String = pem
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let der = STANDARD.decode(base64).map_err(|error| failed(&error))?;
        let pair = RsaKeyPair::from_pkcs8(&der).map_err(|error| failed(&error))?;
        Ok(Self { published, pair })
    }

    /// The key set that the server is given.
    pub(super) fn jwks(&self) -> String {
        KeyRing::new(self.published.clone())
            .jwks(SetStyle::default())
            .to_string()
    }

    /// The bytes of a POST with this body.
    pub(super) fn request(&self, body: &[u8]) -> Result<Request, Error> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PSS_SHA256, &SystemRandom::new(), body, &mut signature)
            .map_err(|error| Error::Key(error.to_string()))?;
        let mut request = format!(
            "POST /webhooks/{APP_ID} HTTP/1.1\r\nHost: bridge\r\n\
             Content-Type: application/json\r\n\
             X-Webhook-Signature: {SIGNATURE_PREFIX}{}\r\nContent-Length: {}\r\n\r\n",
            URL_SAFE_NO_PAD.encode(signature),
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        Ok(request)
    }
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
        let mut requests: Vec<Request> = vec![Vec::new(); count];
        let workers = self.split.all_cpus();
        let share = count.div_ceil(workers).max(1);
        self.split.enter_all();
        let signed = thread::scope(|scope| {
            let pieces = requests.chunks_mut(share).zip(0_u64..);
            let threads: Vec<_> = pieces
                .map(|(piece, index)| {
                    let first = first + index * share as u64 * batch_events;
                    scope.spawn(move || {
                        for (request, batch) in piece.iter_mut().zip(0_u64..) {
                            self.stop.check()?;
                            let start = first + batch * batch_events;
                            *request = self.request(start..start + batch_events)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| join(thread.join()))
        });
        self.split.enter_load();
        signed.map(|()| requests)
    }

    /// Signs one batch with the events of these numbers.
    pub(super) fn request(&self, numbers: Range<u64>) -> Result<Request, Error> {
        self.key.request(&self.events.body(numbers))
    }
}

/// What a thread of ours came to. One that panicked has said so on stderr.
pub(super) fn join<T>(result: thread::Result<Result<T, Error>>) -> Result<T, Error> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
    use rsa::{BigUint, Pss, RsaPublicKey};
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn a_request_carries_a_signature_that_the_published_key_verifies() {
        let key = Key::generate().unwrap();
        let request = key.request(b"{}").unwrap();
        let text = String::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{}");
        assert!(head.ends_with("Content-Length: 2"), "{head}");
        let (_, rest) = head.split_once(SIGNATURE_PREFIX).unwrap();
        let signature = URL_SAFE_NO_PAD
            .decode(rest.lines().next().unwrap())
            .unwrap();
        let set: serde_json::Value = serde_json::from_str(&key.jwks()).unwrap();
        let number = |name: &str| {
            let text = set["keys"][0][name].as_str().unwrap();
            BigUint::from_bytes_be(&URL_SAFE_NO_PAD.decode(text).unwrap())
        };
        let public = RsaPublicKey::new(number("n"), number("e")).unwrap();
        let digest = Sha256::digest(b"{}");
        public
            .verify(Pss::new::<Sha256>(), &digest, &signature)
            .unwrap();
    }
}
