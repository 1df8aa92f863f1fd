//! Owns the rotation of a token: a credential gets a new one and keeps the one before for a while, so that
//! its subscribers change over one by one. Pure; `file` makes it durable.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    entry::{Entry, PreviousToken, Proof},
    token::Digest,
};

/// The token that a rotation brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The hash of the new token.
    pub digest: Digest,
    /// When it is made.
    pub now: Timestamp,
    /// When it expires; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// For how long the current token is accepted beside it, unless that expires earlier. Zero ends all
    /// tokens before at once.
    pub keep_old_for: Duration,
}

/// Why a credential is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// It has no token.
    #[error("it is a certificate and has no token")]
    Certificate,
    /// Two tokens are accepted already. A third would end one of them before its time.
    #[error("it has two tokens already: the old one is accepted until {until}")]
    InProgress {
        /// When one of them expires.
        until: Timestamp,
    },
    /// There is no old token to revoke.
    #[error("it has no old token")]
    NoOldToken,
    /// Another command changed the token meanwhile.
    #[error("its token was changed meanwhile")]
    Changed,
}

impl Entry {
    /// The credential with a new token, and with the current one as its old one.
    ///
    /// # Errors
    /// [`RotationError::Certificate`] and [`RotationError::InProgress`].
    pub fn rotated(&self, rotation: &Rotation) -> Result<Self, RotationError> {
        let Proof::Token(current) = self.proof else {
            return Err(RotationError::Certificate);
        };
        let Rotation {
            digest,
            now,
            expires_at,
            keep_old_for,
        } = *rotation;
        // To the second: nobody needs more, and people read it.
        let created_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let ends_at = created_at.checked_add(keep_old_for);
        let ends_at = ends_at.unwrap_or(Timestamp::MAX);
        let ends_at = self.expires_at.map_or(ends_at, |at| at.min(ends_at));
        if let Some(previous) = self.previous_at(now)
            && !keep_old_for.is_zero()
        {
            let until = previous.expires_at;
            return Err(RotationError::InProgress { until });
        }
        Ok(Self {
            proof: Proof::Token(digest),
            previous: (ends_at > now).then_some(PreviousToken {
                digest: current,
                created_at: self.created_at,
                expires_at: ends_at,
            }),
            created_at: Some(created_at),
            expires_at,
            ..self.clone()
        })
    }

    /// The credential without its old token, also if that has expired.
    ///
    /// # Errors
    /// [`RotationError::NoOldToken`].
    pub fn without_old_token(&self) -> Result<Self, RotationError> {
        if self.previous.is_none() {
            return Err(RotationError::NoOldToken);
        }
        Ok(Self {
            previous: None,
            ..self.clone()
        })
    }

    /// The old token, if it is still accepted.
    fn previous_at(&self, now: Timestamp) -> Option<PreviousToken> {
        self.previous.filter(|previous| previous.expires_at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{CertificateName, Scope};

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * 3600).unwrap()
    }

    fn entry() -> Entry {
        Entry {
            name: "billing".to_owned(),
            proof: Proof::Token(Digest::of("1")),
            previous: None,
            scope: Scope::default(),
            streams_max: Some(3),
            connections_max: None,
            unsent_bytes_max: None,
            created_at: Some(at(-5)),
            expires_at: Some(at(5)),
        }
    }

    fn rotation(token: &str, now: i64, keep_hours: u32) -> Rotation {
        Rotation {
            digest: Digest::of(token),
            now: at(now),
            expires_at: Some(at(1000)),
            keep_old_for: HOUR * keep_hours,
        }
    }

    #[test]
    fn a_rotation_keeps_the_old_token_for_a_while_and_never_for_longer_than_it_had() {
        for (keep, until) in [(3, 3), (5, 5), (100, 5)] {
            let rotated = entry().rotated(&rotation("2", 0, keep)).unwrap();
            let previous = PreviousToken {
                digest: Digest::of("1"),
                created_at: Some(at(-5)),
                expires_at: at(until),
            };
            let expected = Entry {
                proof: Proof::Token(Digest::of("2")),
                previous: Some(previous),
                created_at: Some(at(0)),
                expires_at: Some(at(1000)),
                ..entry()
            };
            assert_eq!(rotated, expected, "{keep}");
        }
        let endless = Entry {
            expires_at: None,
            ..entry()
        };
        let rotated = endless.rotated(&rotation("2", 0, 3)).unwrap();
        assert_eq!(rotated.previous.unwrap().expires_at, at(3));
    }

    #[test]
    fn a_third_token_waits_for_the_first_or_replaces_both_at_once() {
        let rotated = entry().rotated(&rotation("2", 0, 3)).unwrap();
        let until = at(3);
        assert_eq!(
            rotated.rotated(&rotation("3", 2, 1)),
            Err(RotationError::InProgress { until })
        );
        let third = rotated.rotated(&rotation("3", 3, 1)).unwrap();
        assert_eq!(third.previous.unwrap().digest, Digest::of("2"));
        let at_once = rotated.rotated(&rotation("3", 2, 0)).unwrap();
        assert_eq!(at_once.previous, None);
        assert_eq!(at_once.proof, Proof::Token(Digest::of("3")));
        let finished = rotated.without_old_token().unwrap();
        assert_eq!((&finished.proof, finished.previous), (&rotated.proof, None));
        assert!(finished.rotated(&rotation("3", 2, 1)).is_ok());
        assert_eq!(finished.without_old_token(), Err(RotationError::NoOldToken));
    }

    #[test]
    fn a_fraction_of_a_second_after_its_end_an_old_token_is_in_nobodys_way() {
        let rotated = entry().rotated(&rotation("2", 0, 3)).unwrap();
        let fraction = Duration::from_millis(300);
        let almost_over = Entry {
            previous: rotated.previous.map(|previous| PreviousToken {
                expires_at: previous.expires_at + fraction,
                ..previous
            }),
            ..rotated
        };
        let third = |now| {
            let rotation = Rotation {
                now,
                ..rotation("3", 3, 1)
            };
            almost_over.rotated(&rotation)
        };
        assert!(third(at(3)).is_err());
        let rotated = third(at(3) + 2 * fraction).unwrap();
        assert_eq!(rotated.created_at, Some(at(3)));
        assert_eq!(rotated.previous.unwrap().expires_at, at(4));
    }

    #[test]
    fn an_expired_token_is_not_kept_and_a_certificate_has_none() {
        let late = entry().rotated(&rotation("2", 5, 3)).unwrap();
        assert_eq!(late.previous, None);
        let certificate = Entry {
            proof: Proof::Certificate(CertificateName::parse("dns:a")),
            ..entry()
        };
        assert_eq!(
            certificate.rotated(&rotation("2", 0, 3)),
            Err(RotationError::Certificate)
        );
    }
}
