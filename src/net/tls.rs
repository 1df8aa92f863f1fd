//! Owns TLS on a port: who a client proved to be. Knows nothing of what is spoken inside.

use std::sync::Arc;

/// Who a client's certificate says it is: a name that its issuer vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Arc<str>);

impl Identity {
    /// The name, as it was in the certificate.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Identity {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}
