//! Owns the verification tokens of an app, with which the sender shows in an activation challenge that it
//! knows the webhook. While a token is replaced there are two. Knows nothing of where they are kept.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// A verification token. Only its hash is stored, so that it cannot be printed, and that a comparison
/// always takes the same time, also if the lengths differ.
#[derive(Clone)]
pub struct VerificationToken {
    digest: [u8; 32],
}

/// The verification tokens of an app that are accepted. A cheap handle: all clones see a change.
#[derive(Clone, Debug)]
pub struct VerificationTokens {
    accepted: Arc<RwLock<Vec<VerificationToken>>>,
}

impl VerificationToken {
    /// Stores the hash of a token.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self {
            digest: Sha256::digest(token).into(),
        }
    }
}

impl VerificationTokens {
    /// Accepts these.
    #[must_use]
    pub fn new(accepted: Vec<VerificationToken>) -> Self {
        Self {
            accepted: Arc::new(RwLock::new(accepted)),
        }
    }

    /// Accepts these from now on, and no others.
    pub fn replace(&self, accepted: Vec<VerificationToken>) {
        *self
            .accepted
            .write()
            .unwrap_or_else(PoisonError::into_inner) = accepted;
    }

    /// The tokens that are accepted.
    #[must_use]
    pub fn accepted(&self) -> Vec<VerificationToken> {
        let accepted = self.accepted.read();
        accepted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a token is one of those. Its time does not tell which one it is, or how much of it is right.
    pub(super) fn matches(&self, token: &str) -> bool {
        let token = VerificationToken::new(token);
        let accepted = self.accepted.read();
        let accepted = accepted.unwrap_or_else(PoisonError::into_inner);
        let matches = accepted.iter().map(|own| own.digest.ct_eq(&token.digest));
        matches.fold(Choice::from(0), |any, one| any | one).into()
    }
}

impl PartialEq for VerificationToken {
    fn eq(&self, other: &Self) -> bool {
        self.digest.ct_eq(&other.digest).into()
    }
}

impl Eq for VerificationToken {}

impl fmt::Debug for VerificationToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("VerificationToken(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: &[&str]) -> Vec<VerificationToken> {
        tokens.iter().copied().map(VerificationToken::new).collect()
    }

    #[test]
    fn each_accepted_token_matches_and_no_other_does() {
        let accepted = VerificationTokens::new(tokens(&["one"]));
        let clone = accepted.clone();
        let matches = |token: &str| clone.matches(token);
        assert!(matches("one") && !matches("two") && !matches(""));
        accepted.replace(tokens(&["two", "one"]));
        assert!(matches("one") && matches("two"));
        assert!(!matches("on") && !matches("one\n") && !matches("twoone"));
        accepted.replace(tokens(&["two"]));
        assert!(!matches("one") && matches("two"));
        assert_eq!(accepted.accepted(), tokens(&["two"]));
        accepted.replace(Vec::new());
        assert!(!matches("one") && !matches(""));
    }
}
