//! Owns the credentials that hold at one moment: finding the one that a caller shows, and going
//! from one moment to the next so that whoever lost something is told. Knows nothing of files.

use std::{collections::HashMap, sync::Arc};

use super::{
    entry::{Entry, Proof},
    grant::{Clock, Ended, Holder, Kind, Quota, Quotas},
    token::Digest,
};
use crate::net::tls::Identity;

/// All credentials of a file.
#[derive(Default)]
pub(super) struct Set {
    /// By name.
    members: HashMap<Box<str>, Member>,
    /// The hash of a token is spread evenly and nobody can aim at a part of it, so the time of a
    /// search by it tells nothing about any token.
    tokens: HashMap<Digest, Arc<Holder>>,
    certificates: HashMap<Identity, Arc<Holder>>,
}

struct Member {
    entry: Entry,
    holder: Arc<Holder>,
}

impl Set {
    /// The set of these entries. Those that mean the same as before go on: with their streams,
    /// and with their quota as far as it is used.
    pub(super) fn after(before: &Self, entries: Vec<Entry>, clock: &Clock) -> Self {
        let mut set = Self::default();
        for entry in entries {
            let unchanged = before
                .members
                .get(entry.name.as_str())
                .filter(|member| member.entry.means_the_same(&entry));
            let holder = match unchanged {
                Some(member) => Arc::clone(&member.holder),
                None => hold(&entry, clock),
            };
            match &entry.proof {
                Proof::Token(digest) => set.tokens.insert(*digest, Arc::clone(&holder)),
                Proof::Certificate(name) => set
                    .certificates
                    .insert(name.identity().clone(), Arc::clone(&holder)),
            };
            let name = entry.name.as_str().into();
            set.members.insert(name, Member { entry, holder });
        }
        set
    }

    /// Ends what was granted under credentials that are not in the next set as they were. Called
    /// when the next set is in use, so that whoever comes back meets that one.
    pub(super) fn end_for(&self, next: &Self) -> Ends {
        let mut ends = Ends::default();
        for (name, member) in &self.members {
            match next.members.get(name) {
                Some(other) if Arc::ptr_eq(&other.holder, &member.holder) => {}
                // The same caller as before gets something else.
                Some(other) if other.entry.proof == member.entry.proof => {
                    member.holder.end(Ended::Changed);
                    ends.changed += 1;
                }
                Some(_) | None => {
                    member.holder.end(Ended::Revoked);
                    ends.revoked += 1;
                }
            }
        }
        ends
    }

    pub(super) fn of_token(&self, digest: &Digest) -> Option<&Arc<Holder>> {
        let (found, holder) = self.tokens.get_key_value(digest)?;
        found.matches(digest).then_some(holder)
    }

    pub(super) fn of_certificate(&self, identity: &Identity) -> Option<&Arc<Holder>> {
        self.certificates.get(identity)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }
}

/// How many credentials went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) revoked: usize,
    pub(super) changed: usize,
}

fn hold(entry: &Entry, clock: &Clock) -> Arc<Holder> {
    let kind = match entry.proof {
        Proof::Token(_) => Kind::Token,
        Proof::Certificate(_) => Kind::Certificate,
    };
    Holder::new(
        kind,
        &entry.name,
        entry.scope.clone(),
        Quota::new(Quotas {
            streams_max: entry.streams_max,
            connections_max: entry.connections_max,
            unsent_bytes_max: entry.unsent_bytes_max,
        }),
        entry.expires_at,
        Arc::clone(clock),
    )
}
