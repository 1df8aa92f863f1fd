//! Owns the password or token of an engine's login: it is read at each connection, so that one that was changed
//! needs no restart. Knows nothing of where it is kept.

use std::{fmt, sync::Arc};

/// A password or a token. Printing it prints a placeholder.
#[derive(Clone)]
pub struct Secret(Arc<dyn Fn() -> Result<String, String> + Send + Sync>);

impl Secret {
    /// Takes a text in that stays the same.
    pub fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self::read_by(move || Ok(text.clone()))
    }

    /// A secret that is read anew for each connection. What reading fails with must not contain it.
    pub fn read_by(read: impl Fn() -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The text as it is now, to be sent only.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self) -> Result<String, String> {
        (self.0)()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(redacted)")
    }
}
