//! Owns the credentials that are in force at one moment: finding the one that a caller shows, and going
//! from one moment to the next so that whoever lost something is told. Knows nothing of files.

use std::{collections::HashMap, sync::Arc};

use super::{
    entry::{Entry, Proof},
    expiry::Expiry,
    grant::{Clock, Ended, Holder, Kind, Quota, Quotas},
    scope::Scope,
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

/// One credential, with a holder for each of its proofs. They share its quota.
struct Member {
    scope: Scope,
    quotas: Quotas,
    expiry: Option<Expiry>,
    proofs: Vec<(Proof, Arc<Holder>)>,
}

impl Set {
    /// The set of these entries. What was granted for a proof goes on, with its streams and its part of
    /// the quota, if the credential of that name still has the proof and allows the same. It expires when
    /// the new entry says.
    pub(super) fn after(before: &Self, entries: Vec<Entry>, clock: &Clock) -> Self {
        let mut set = Self::default();
        for entry in entries {
            let quotas = entry.quotas();
            let unchanged = before
                .members
                .get(entry.name.as_str())
                .filter(|member| member.scope == entry.scope && member.quotas == quotas);
            let holder_of = |proof: &Proof| unchanged.and_then(|member| member.holder(proof));
            let quota = entry
                .proofs()
                .find_map(|(proof, _)| holder_of(&proof))
                .map_or_else(|| Quota::new(quotas), |holder| Arc::clone(&holder.quota));
            let proofs = entry.proofs().map(|(proof, expires_at)| {
                let holder = match holder_of(&proof) {
                    Some(holder) => {
                        holder.set_expiry(expires_at);
                        Arc::clone(holder)
                    }
                    None => hold(&entry, &proof, expires_at, &quota, clock),
                };
                (proof, holder)
            });
            let proofs: Vec<_> = proofs.collect();
            set.insert(entry, proofs);
        }
        set
    }

    fn insert(&mut self, entry: Entry, proofs: Vec<(Proof, Arc<Holder>)>) {
        for (proof, holder) in &proofs {
            match proof {
                Proof::Token(digest) => self.tokens.insert(*digest, Arc::clone(holder)),
                Proof::Certificate(name) => self
                    .certificates
                    .insert(name.identity().clone(), Arc::clone(holder)),
            };
        }
        let member = Member {
            expiry: Expiry::of(&entry),
            quotas: entry.quotas(),
            scope: entry.scope,
            proofs,
        };
        self.members.insert(entry.name.into(), member);
    }

    /// Ends what was granted for proofs that are not in the next set, or for something else. Called
    /// when the next set is in use, so that whoever comes back meets that one.
    pub(super) fn end_for(&self, next: &Self) -> Ends {
        let mut ends = Ends::default();
        for (name, member) in &self.members {
            let next = next.members.get(name);
            for (proof, holder) in &member.proofs {
                match next.and_then(|next| next.holder(proof)) {
                    Some(next) if Arc::ptr_eq(next, holder) => {}
                    // The same caller as before gets something else.
                    Some(_) => {
                        holder.end(Ended::Changed);
                        ends.changed += 1;
                    }
                    None => {
                        holder.end(Ended::Revoked);
                        ends.revoked += 1;
                    }
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

    /// How many credentials there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Every proof and what callers hold who showed it.
    pub(super) fn proofs(&self) -> impl Iterator<Item = &(Proof, Arc<Holder>)> {
        self.members.values().flat_map(|member| &member.proofs)
    }

    /// When each credential expires that does.
    pub(super) fn expiries(&self) -> impl Iterator<Item = &Expiry> {
        self.members
            .values()
            .filter_map(|member| member.expiry.as_ref())
    }
}

impl Member {
    fn holder(&self, proof: &Proof) -> Option<&Arc<Holder>> {
        let mut proofs = self.proofs.iter();
        let (_, holder) = proofs.find(|(own, _)| own == proof)?;
        Some(holder)
    }
}

/// How many tokens and certificates lost what they had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) revoked: usize,
    pub(super) changed: usize,
}

fn hold(
    entry: &Entry,
    proof: &Proof,
    expires_at: Option<jiff::Timestamp>,
    quota: &Arc<Quota>,
    clock: &Clock,
) -> Arc<Holder> {
    let kind = match proof {
        Proof::Token(_) => Kind::Token,
        Proof::Certificate(_) => Kind::Certificate,
    };
    Holder::new(
        kind,
        &entry.name,
        entry.scope.clone(),
        Arc::clone(quota),
        expires_at,
        Arc::clone(clock),
    )
}
