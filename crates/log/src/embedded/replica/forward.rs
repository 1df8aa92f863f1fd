//! Owns the forwarding of batches to the bridge that wrote last. When several bridges write, each commit of one
//! costs the others an attempt; so while somebody else writes, a bridge has that one write its batches too.
//! Whether that works is not important: what is not answered in time is written here, and what is written
//! twice is left out.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, BufMut as _, Bytes, TryGetError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{super::Shared, Replica, Replicated};
use crate::{
    Appended, Error,
    embedded::queue::Job,
    sequencer::{Answer, Peers, Position},
};
use prelude_bridge_event::{Batch, Dates, Draft, EventKey, UnixMicros};

/// Who wrote within this time is the one that writes.
const RECENT: Duration = Duration::from_millis(200);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// After one that did not come, batches are written here for so long.
const REST: Duration = Duration::from_secs(1);
/// How many groups are forwarded at once. 2: one is on its way while the other is written.
const GROUPS_MAX: usize = 2;
/// How long the commit of another bridge takes at most to come back, once that has answered.
const RETURN_MAX: Duration = Duration::from_secs(5);
const VERSION: u8 = 1;

/// A batch with the place where its answer is awaited.
pub(in crate::embedded) type Waiting = (Batch, oneshot::Sender<Result<Appended, Error>>);

/// What a bridge knows of those to whom it may forward.
pub(in crate::embedded) struct Forward {
    peers: Option<Arc<dyn Peers>>,
    /// Who wrote last, apart from this bridge.
    other: Option<(u32, Instant)>,
    /// When this bridge wrote last.
    own: Option<Instant>,
    rests_until: Option<Instant>,
    has_failed: Arc<AtomicBool>,
    groups: Arc<Semaphore>,
}

impl Forward {
    pub(super) fn new(peers: Option<Arc<dyn Peers>>) -> Self {
        Self {
            peers,
            other: None,
            own: None,
            rests_until: None,
            has_failed: Arc::default(),
            groups: Arc::new(Semaphore::new(GROUPS_MAX)),
        }
    }

    /// A commit of this writer was applied.
    pub(in crate::embedded) fn note(&mut self, writer: u32, own: u32) {
        let now = Instant::now();
        if writer == own {
            self.own = Some(now);
        } else {
            self.other = Some((writer, now));
        }
    }

    /// The bridge that is to write now, if it is not this one. Of two that have written lately it is the one with
    /// the smaller number: neither waits for the other.
    fn target(&mut self, own: u32) -> Option<u32> {
        if self.has_failed.swap(false, Ordering::Relaxed) {
            self.rests_until = Some(Instant::now() + REST);
        }
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        let is_recent = |at: Instant| at.elapsed() < RECENT;
        let (other, _) = self.other.filter(|&(_, at)| !rests && is_recent(at))?;
        let writes_too = self.own.is_some_and(is_recent);
        (!writes_too || other < own).then_some(other)
    }
}

impl Replica {
    /// Leaves batches to another bridge, if one writes now. Returns those that are to be written here.
    pub(in crate::embedded) fn forward(
        &mut self,
        batches: Vec<Waiting>,
        shared: &Arc<Shared>,
    ) -> Vec<Waiting> {
        let Some(peers) = self.forward.peers.clone() else {
            return batches;
        };
        let Some(target) = self.forward.target(self.writer) else {
            return batches;
        };
        let Ok(permit) = Arc::clone(&self.forward.groups).try_acquire_owned() else {
            return batches;
        };
        let question = encode_batches(batches.iter().map(|(batch, _)| batch));
        if batches.is_empty() || question.len() > self.sequencer().commit_bytes_max() {
            return batches;
        }
        let group = Group {
            batches,
            shared: Arc::clone(shared),
            replicated: Arc::clone(&self.shared),
            has_failed: Arc::clone(&self.forward.has_failed),
            _permit: permit,
        };
        self.runtime.spawn(async move {
            let answer = peers.ask(target, question, PATIENCE).await;
            group.finish(answer).await;
        });
        Vec::new()
    }

    /// Writes what other bridges forward, from now on.
    pub(in crate::embedded) fn serve(&self, shared: &Arc<Shared>) {
        if let Some(peers) = &self.forward.peers {
            let (shared, replicated) = (Arc::downgrade(shared), Arc::downgrade(&self.shared));
            let answer: Answer = Arc::new(move |question| {
                let (shared, replicated) = (Weak::clone(&shared), Weak::clone(&replicated));
                Box::pin(async move {
                    let answer = answer(&question, &shared, &replicated).await;
                    answer.unwrap_or_default()
                })
            });
            peers.serve(self.writer, answer);
        }
    }
}

/// Batches that are on their way.
struct Group {
    batches: Vec<Waiting>,
    shared: Arc<Shared>,
    replicated: Arc<Replicated>,
    has_failed: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
}

impl Group {
    /// Answers as the other bridge did, once this one has the events too; or has them written here.
    async fn finish(self, answer: Option<Bytes>) {
        let answer = answer.and_then(|answer| decode_answer(answer).ok());
        let answer = answer.filter(|(_, appended)| appended.len() == self.batches.len());
        if let Some((position, appended)) = answer {
            let mut applied = self.replicated.applied.subscribe();
            let returned = applied.wait_for(|&applied| applied >= position);
            if tokio::time::timeout(RETURN_MAX, returned).await.is_ok() {
                for ((_, reply), appended) in self.batches.into_iter().zip(appended) {
                    // The request may have been given up.
                    let _ = reply.send(Ok(appended));
                }
                return;
            }
        }
        self.has_failed.store(true, Ordering::Relaxed);
        let jobs = self.batches.into_iter().map(|(batch, reply)| Job::Append {
            batch,
            reply,
            is_forwarded: true,
        });
        self.shared.queue.put_back(jobs);
    }
}

/// Appends what another bridge has forwarded. `None` where anything of it is refused.
async fn answer(
    question: &Bytes,
    shared: &Weak<Shared>,
    replicated: &Weak<Replicated>,
) -> Option<Bytes> {
    let batches = decode_batches(question.clone()).ok()?;
    let fates: Vec<_> = {
        let shared = shared.upgrade()?;
        let pushed = batches
            .into_iter()
            .map(|batch| shared.queue.push_forwarded(batch));
        pushed.collect::<Result<_, _>>().ok()?
    };
    let mut appended = Vec::with_capacity(fates.len());
    for fate in fates {
        appended.push(fate.await.ok()?.ok()?);
    }
    let position = *replicated.upgrade()?.applied.borrow();
    Some(encode_answer(position, &appended))
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take_bytes(from: &mut Bytes) -> Result<Bytes, TryGetError> {
    let requested = from.try_get_u32_le()? as usize;
    if requested > from.len() {
        let available = from.len();
        return Err(TryGetError {
            requested,
            available,
        });
    }
    Ok(from.split_to(requested))
}

fn take_text(from: &mut Bytes) -> Result<Arc<str>, TryGetError> {
    let bytes = take_bytes(from)?;
    Ok(String::from_utf8_lossy(&bytes).into())
}

fn encode_batches<'a>(batches: impl Iterator<Item = &'a Batch>) -> Bytes {
    let mut out = vec![VERSION];
    for batch in batches {
        put_bytes(&mut out, batch.app_id.as_bytes());
        put_bytes(&mut out, &batch.body);
        put_bytes(&mut out, &batch.encoded);
        for date in [batch.dates.oldest, batch.dates.newest] {
            out.put_u8(u8::from(date.is_some()));
            out.put_i64_le(date.map_or(0, |date| date.0));
        }
        out.put_u32_le(u32::try_from(batch.drafts.len()).unwrap_or(u32::MAX));
        for draft in &batch.drafts {
            out.put_slice(&draft.key.0);
            put_bytes(&mut out, draft.event_type.as_bytes());
            out.put_u32_le(draft.user_hash);
            for range in [&draft.head, &draft.payload, &draft.raw_json] {
                out.put_u64_le(range.start as u64);
                out.put_u64_le(range.end as u64);
            }
        }
    }
    out.into()
}

fn decode_batches(mut from: Bytes) -> Result<Vec<Batch>, TryGetError> {
    let from = &mut from;
    let mut batches = Vec::new();
    if from.try_get_u8()? != VERSION {
        // One of another release is not understood: its sender writes it itself.
        return Err(TryGetError {
            requested: 1,
            available: 0,
        });
    }
    while from.has_remaining() {
        let app_id = take_text(from)?;
        let (body, encoded) = (take_bytes(from)?, take_bytes(from)?);
        let mut date = || -> Result<Option<UnixMicros>, TryGetError> {
            let is_some = from.try_get_u8()? == 1;
            let date = from.try_get_i64_le()?;
            Ok(is_some.then_some(UnixMicros(date)))
        };
        let dates = Dates {
            oldest: date()?,
            newest: date()?,
        };
        let mut drafts = Vec::new();
        for _ in 0..from.try_get_u32_le()? {
            drafts.push(decode_draft(from)?);
        }
        batches.push(Batch {
            app_id,
            body,
            encoded,
            drafts,
            dates,
        });
    }
    Ok(batches)
}

fn decode_draft(from: &mut Bytes) -> Result<Draft, TryGetError> {
    let mut key = EventKey([0; 16]);
    from.try_copy_to_slice(&mut key.0)?;
    let event_type = take_text(from)?;
    let user_hash = from.try_get_u32_le()?;
    let mut range = || -> Result<_, TryGetError> {
        let start = usize::try_from(from.try_get_u64_le()?).unwrap_or(usize::MAX);
        let end = usize::try_from(from.try_get_u64_le()?).unwrap_or(usize::MAX);
        Ok(start..end)
    };
    Ok(Draft {
        key,
        event_type,
        user_hash,
        head: range()?,
        payload: range()?,
        raw_json: range()?,
    })
}

fn encode_answer(position: Position, appended: &[Appended]) -> Bytes {
    let mut out = vec![VERSION];
    out.put_u64_le(position.0);
    for appended in appended {
        for count in [appended.accepted, appended.duplicates, appended.changed] {
            out.put_u64_le(count as u64);
        }
        out.put_u8(u8::from(appended.changed_id.is_some()));
        put_bytes(
            &mut out,
            appended
                .changed_id
                .as_deref()
                .unwrap_or_default()
                .as_bytes(),
        );
    }
    out.into()
}

fn decode_answer(mut from: Bytes) -> Result<(Position, Vec<Appended>), TryGetError> {
    let from = &mut from;
    if from.try_get_u8()? != VERSION {
        return Err(TryGetError {
            requested: 1,
            available: 0,
        });
    }
    let position = Position(from.try_get_u64_le()?);
    let mut appended = Vec::new();
    while from.has_remaining() {
        let mut count = || -> Result<_, TryGetError> {
            Ok(usize::try_from(from.try_get_u64_le()?).unwrap_or(usize::MAX))
        };
        let (accepted, duplicates, changed) = (count()?, count()?, count()?);
        let has_id = from.try_get_u8()? == 1;
        let id = take_text(from)?;
        appended.push(Appended {
            accepted,
            duplicates,
            changed,
            changed_id: has_id.then(|| (*id).into()),
        });
    }
    Ok((position, appended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn batches_and_answers_survive_the_way_and_pieces_of_them_are_refused() {
        let batches = [
            fixtures::numbered("app_1", 0..3),
            fixtures::numbered("app_2", 3..4),
        ];
        let bytes = encode_batches(batches.iter());
        let read = decode_batches(bytes.clone()).unwrap();
        assert_eq!(read.len(), 2);
        for (read, batch) in read.iter().zip(&batches) {
            assert_eq!(read.app_id, batch.app_id);
            assert_eq!(read.dates, batch.dates);
            assert_eq!(read.drafts.len(), batch.drafts.len());
            for (one, other) in read.drafts.iter().zip(&batch.drafts) {
                assert_eq!(one.key, other.key);
                assert_eq!(one.event_type, other.event_type);
                assert_eq!(one.user_hash, other.user_hash);
                assert_eq!(read.head(one), batch.head(other));
                assert_eq!(read.payload(one), batch.payload(other));
                assert_eq!(read.raw_json(one), batch.raw_json(other));
            }
        }
        let appended = [
            Appended {
                accepted: 3,
                ..Appended::default()
            },
            Appended {
                duplicates: 1,
                changed: 1,
                changed_id: Some("evt_1".into()),
                ..Appended::default()
            },
        ];
        let answer = encode_answer(Position(7), &appended);
        let read = decode_answer(answer.clone()).unwrap();
        assert_eq!(read, (Position(7), appended.to_vec()));
        for length in 0..answer.len() {
            let cut = decode_answer(answer.slice(..length));
            assert!(cut.is_err() || cut.unwrap().1.len() < 2, "{length}");
        }
        for length in 0..bytes.len() {
            let cut = decode_batches(bytes.slice(..length));
            assert!(cut.is_err() || cut.unwrap().len() < 2, "{length}");
        }
        let mut newer = bytes.to_vec();
        newer[0] = VERSION + 1;
        assert!(decode_batches(newer.into()).is_err());
    }

    #[test]
    fn of_two_that_write_one_goes_on_and_the_other_forwards() {
        let mut lower = Forward::new(None);
        let mut higher = Forward::new(None);
        assert_eq!(lower.target(1), None);
        lower.note(2, 1);
        assert_eq!(lower.target(1), Some(2), "only the other writes");
        lower.note(1, 1);
        higher.note(2, 2);
        higher.note(1, 2);
        assert_eq!((lower.target(1), higher.target(2)), (None, Some(1)));
        higher.has_failed.store(true, Ordering::Relaxed);
        assert_eq!(higher.target(2), None, "it did not answer just now");
    }
}
