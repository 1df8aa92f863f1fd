//! Owns the stream on the server: appending a commit, looking one up, what it has, and whether it is still
//! the same stream.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_nats::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use prelude_bridge_log::sequencer::{Ends, Outage, Outcome, Position};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    answer::{Answer, interpret},
    api::{StoredMessage, StreamInfo, StreamState, code},
    link::{Failure, Link},
    options::Names,
    settings::COMMIT_BYTES_MAX,
};

/// How long anything may take that the leader of the stream does by itself or with a quorum.
pub(crate) const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// The server has to say so often that there is no such stream: one that starts may not know it yet.
const GONE_ANSWERS: u32 = 4;
const GONE_PAUSE: Duration = Duration::from_millis(500);
/// How long a server may report less than was seen before it is believed: a leader that was stopped for
/// a while answers from the past until it notices that there is another one.
const BACK_TIME_MAX: Duration = Duration::from_secs(5);
const BACK_PAUSE: Duration = Duration::from_millis(250);

/// A stream, and the two connections to it.
pub(crate) struct Stream {
    pub(crate) names: Names,
    pub(crate) writer: Link,
    pub(crate) reader: Link,
    /// How many there have been, of both.
    pub(crate) connections: watch::Sender<u64>,
    /// When it was created: a stream of the same name that was created later is another one.
    pub(crate) created: String,
    /// The last position that was seen in it.
    pub(crate) seen: AtomicU64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.names.whole)
    }
}

impl Stream {
    pub(crate) async fn append(
        &self,
        position: Position,
        commit: Bytes,
    ) -> Result<Outcome, Outage> {
        let Some(last) = position.0.checked_sub(1) else {
            return Ok(Outcome::Refused);
        };
        if commit.len() > COMMIT_BYTES_MAX {
            let what = format!(
                "{} takes no commit of {} bytes",
                self.names.whole,
                commit.len()
            );
            return Err(Outage::Unusable(what.into()));
        }
        let headers = expect_last(last, &self.names);
        let answer =
            self.writer
                .request(&self.names.commits, Some(headers), commit, ANSWER_TIME_MAX);
        match answer.await {
            Ok(message) => self.interpret(&message.payload, position).await,
            Err(Failure::NoResponders) => {
                // Without a leader for a moment, or for ever: the stream may be gone.
                self.info(&self.writer).await?;
                Err(self.writer.outage(Failure::NoResponders, "a commit"))
            }
            Err(failure) => Err(self.writer.outage(failure, "a commit")),
        }
    }

    async fn interpret(&self, payload: &[u8], position: Position) -> Result<Outcome, Outage> {
        match interpret(payload, position, &self.names) {
            Answer::Won => {
                self.see(position);
                Ok(Outcome::Won)
            }
            Answer::Refused { last } => {
                // It has less than what is expected: perhaps it is another stream.
                if last.is_some_and(|last| last.saturating_add(1) < position.0) {
                    self.info(&self.writer).await?;
                }
                Ok(Outcome::Refused)
            }
            Answer::Outage(outage) => Err(outage),
        }
    }

    /// Asks the leader: direct gets are answered by any replica, from the past.
    pub(crate) async fn get(&self, position: Position) -> Result<Option<Bytes>, Outage> {
        const WHAT: &str = "a question for a commit";
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.names.stream);
        let question = format!(r#"{{"seq":{position}}}"#);
        if position.0 == 0 {
            return Ok(None);
        }
        let answer = self
            .writer
            .request(&subject, None, question.into(), ANSWER_TIME_MAX)
            .await;
        let answer = answer.map_err(|failure| self.writer.outage(failure, WHAT))?;
        let not_understood = || {
            let what = format!(
                "{} answers {WHAT} with what is not understood",
                self.names.whole
            );
            Outage::Unavailable(what.into())
        };
        let stored: StoredMessage =
            serde_json::from_slice(&answer.payload).map_err(|_| not_understood())?;
        if let Some(error) = stored.error {
            return match error.err_code {
                code::NO_MESSAGE => Ok(None),
                code::STREAM_NOT_FOUND => {
                    self.info(&self.writer).await?;
                    Err(self.writer.api_outage(&error, WHAT))
                }
                _ => Err(self.writer.api_outage(&error, WHAT)),
            };
        }
        let message = stored.message.filter(|message| message.seq == position.0);
        let message = message.ok_or_else(not_understood)?;
        let commit = STANDARD
            .decode(message.data)
            .map_err(|_| not_understood())?;
        self.see(position);
        Ok(Some(commit.into()))
    }

    pub(crate) async fn ends(&self) -> Result<Ends, Outage> {
        let end = Instant::now() + BACK_TIME_MAX;
        loop {
            let ends = ends(&self.info(&self.writer).await?.state);
            if ends.last.0 >= self.seen.load(Ordering::Relaxed) {
                self.see(ends.last);
                return Ok(ends);
            }
            if Instant::now() >= end {
                self.seen.store(ends.last.0, Ordering::Relaxed);
                return Ok(ends);
            }
            sleep(BACK_PAUSE).await;
        }
    }

    pub(crate) fn see(&self, position: Position) {
        self.seen.fetch_max(position.0, Ordering::Relaxed);
    }

    /// Asks the leader what the stream is, and whether it is still the same one.
    pub(crate) async fn info(&self, link: &Link) -> Result<StreamInfo, Outage> {
        const WHAT: &str = "a question for its state";
        let subject = format!("$JS.API.STREAM.INFO.{}", self.names.stream);
        for answers in 1.. {
            let answer = link
                .api::<StreamInfo>(&subject, Bytes::new(), ANSWER_TIME_MAX)
                .await;
            let error = match answer.map_err(|failure| link.outage(failure, WHAT))? {
                Ok(info) if info.created == self.created => return Ok(info),
                Ok(_) => break,
                Err(error) => error,
            };
            if error.err_code != code::STREAM_NOT_FOUND {
                return Err(link.api_outage(&error, WHAT));
            }
            if answers >= GONE_ANSWERS {
                break;
            }
            sleep(GONE_PAUSE).await;
        }
        let what = format!(
            "{} was deleted, or replaced by another one: restore it from a backup, or let the bridges begin \
             a new log",
            self.names.whole
        );
        Err(Outage::Unusable(what.into()))
    }
}

/// The condition under which a commit is stored.
pub(crate) fn expect_last(last: u64, names: &Names) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Sequence", last.to_string());
    headers.insert("Nats-Expected-Stream", names.stream.as_str());
    headers
}

pub(crate) fn ends(state: &StreamState) -> Ends {
    let last = Position(state.last_seq);
    let first = match state.messages {
        0 => last.next(),
        _ => Position(state.first_seq),
    };
    Ends { first, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_stream_begins_after_its_last_commit() {
        let of = |messages, first_seq, last_seq| {
            let ends = ends(&StreamState {
                messages,
                first_seq,
                last_seq,
                ..StreamState::default()
            });
            (ends.first.0, ends.last.0)
        };
        assert_eq!(of(0, 0, 0), (1, 0));
        assert_eq!(of(0, 8, 7), (8, 7));
        assert_eq!(of(0, 0, 7), (8, 7));
        assert_eq!(of(3, 5, 7), (5, 7));
    }
}
