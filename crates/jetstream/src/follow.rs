//! Owns the reading of a stream: a pull consumer in the memory of one server, begun at a position and
//! never repaired. Whatever goes wrong ends it, and whoever follows begins another one.
//!
//! The server numbers what it delivers, so a hole is seen. It begins silently with the first message that
//! is left, which is why the beginning is compared. Heartbeats tell a quiet stream from a server that is gone.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use prelude_bridge_log::sequencer::{Outage, Position};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use crate::{
    api::code,
    link::Failure,
    settings::{CONSUMER_INACTIVE, MESSAGE_BYTES},
    stream::{ANSWER_TIME_MAX, Stream, ends},
};

/// How much one pull asks for: the largest message fits.
const PULL_BYTES: usize = MESSAGE_BYTES;
const PULL_MESSAGES: usize = 10_000;
/// While one is delivered the next is with the server already.
const PULLS: usize = 2;
const PULL_TIME: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(400);
/// After so much silence, of five heartbeats, the consumer is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// So many pulls in a row that end without a message because it does not fit: it fits in none.
const REFUSED_PULLS_MAX: usize = 2 * PULLS;
/// Before a missing commit is called lost it is looked for again.
const LOSS_PAUSE: Duration = Duration::from_secs(1);

const WHAT: &str = "a reader";

/// Reads the commits from a position on.
pub(crate) struct Follower {
    stream: Arc<Stream>,
    next: Position,
    consumer: Option<Consumer>,
}

/// A consumer on the server. Dropping it removes it there.
struct Consumer {
    stream: Arc<Stream>,
    name: String,
    inbox: String,
    messages: Subscriber,
    /// Ends with the connection that it was begun on.
    lost: u64,
    /// How many are with the server.
    pulls: usize,
    /// How many have ended in a row because the message did not fit.
    refused_pulls: usize,
}

/// What the consumer brought.
enum Event {
    Commit {
        position: u64,
        commit: Bytes,
    },
    /// A heartbeat, or the end of a pull.
    Nothing,
}

impl Follower {
    pub(crate) fn new(stream: Arc<Stream>, from: Position) -> Self {
        Self {
            stream,
            next: from.max(Position(1)),
            consumer: None,
        }
    }

    pub(crate) async fn next(&mut self) -> Result<(Position, Bytes), Outage> {
        if self.consumer.is_none() {
            self.consumer = Some(self.begin().await?);
        }
        let Some(consumer) = &mut self.consumer else {
            return Err(self.stream.reader.outage(Failure::Disconnected, WHAT));
        };
        loop {
            consumer.pull().await?;
            let Event::Commit { position, commit } = consumer.event().await? else {
                continue;
            };
            if position != self.next.0 {
                return Err(self.explain_hole(position).await);
            }
            let position = self.next;
            self.next = position.next();
            self.stream.see(position);
            return Ok((position, commit));
        }
    }

    /// Whether commits could be read: ends with the first commit or heartbeat.
    pub(crate) async fn try_reading(&self) -> Result<(), Outage> {
        let mut consumer = self.begin().await?;
        consumer.pull().await?;
        consumer.event().await.map(drop)
    }

    async fn begin(&self) -> Result<Consumer, Outage> {
        let consumer = Consumer::create(Arc::clone(&self.stream), self.next).await?;
        // After it was created: from now on it is the consumer that tells what is removed.
        let first = ends(&self.stream.info(&self.stream.reader).await?.state).first;
        if first > self.next {
            return Err(Outage::Removed { first });
        }
        Ok(consumer)
    }

    /// Why another commit than the next one came.
    async fn explain_hole(&self, found: u64) -> Outage {
        match self.is_lost().await {
            Err(outage) => outage,
            Ok(false) => Outage::Unavailable(
                format!(
                    "a reader of {} brought position {found} instead of {}",
                    self.stream.names.whole, self.next
                )
                .into(),
            ),
            Ok(true) => Outage::Unusable(
                format!(
                    "{} has lost the commit at position {}, and has those around it: restore it from a backup",
                    self.stream.names.whole, self.next
                )
                .into(),
            ),
        }
    }

    /// Whether the leader, too, has no commit at the next position, but has later and earlier ones.
    async fn is_lost(&self) -> Result<bool, Outage> {
        for _ in 0..2 {
            let ends = ends(&self.stream.info(&self.stream.reader).await?.state);
            if ends.first > self.next {
                return Err(Outage::Removed { first: ends.first });
            }
            if ends.last < self.next || self.stream.get(self.next).await?.is_some() {
                return Ok(false);
            }
            sleep(LOSS_PAUSE).await;
        }
        Ok(true)
    }
}

impl Consumer {
    async fn create(stream: Arc<Stream>, from: Position) -> Result<Self, Outage> {
        let link = &stream.reader;
        let lost = link
            .connection()
            .await
            .map_err(|failure| link.outage(failure, WHAT))?;
        let inbox = link.client().new_inbox();
        let messages = link
            .subscribe(inbox.clone())
            .await
            .map_err(|failure| link.outage(failure, WHAT))?;
        // The number of an inbox is random.
        let name = format!("reader-{}", inbox.rsplit('.').next().unwrap_or_default());
        let stream_name = &stream.names.stream;
        let request = serde_json::json!({
            "stream_name": stream_name,
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": from.0,
                "ack_policy": "none",
                "replay_policy": "instant",
                "inactive_threshold": u64::try_from(CONSUMER_INACTIVE.as_nanos()).unwrap_or(u64::MAX),
                "num_replicas": 1,
                "mem_storage": true,
            },
        });
        let subject = format!("$JS.API.CONSUMER.CREATE.{stream_name}.{name}");
        let answer = link
            .api::<serde_json::Value>(&subject, request.to_string().into(), ANSWER_TIME_MAX)
            .await;
        if let Err(error) = answer.map_err(|failure| link.outage(failure, WHAT))? {
            if error.err_code == code::STREAM_NOT_FOUND {
                stream.info(link).await?;
            }
            return Err(link.api_outage(&error, WHAT));
        }
        Ok(Self {
            name,
            inbox,
            messages,
            lost,
            pulls: 0,
            refused_pulls: 0,
            stream,
        })
    }

    /// Keeps [`PULLS`] with the server.
    async fn pull(&mut self) -> Result<(), Outage> {
        let link = &self.stream.reader;
        let subject = format!(
            "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
            self.stream.names.stream, self.name
        );
        while self.pulls < PULLS {
            let request = format!(
                r#"{{"batch":{PULL_MESSAGES},"max_bytes":{PULL_BYTES},"expires":{},"idle_heartbeat":{}}}"#,
                PULL_TIME.as_nanos(),
                HEARTBEAT.as_nanos()
            );
            let pull = link.client().publish_with_reply(
                subject.clone(),
                self.inbox.clone(),
                request.into(),
            );
            match timeout(ANSWER_TIME_MAX, pull).await {
                Ok(Ok(())) => self.pulls += 1,
                Ok(Err(_)) | Err(_) => return Err(link.outage(Failure::Disconnected, WHAT)),
            }
        }
        Ok(())
    }

    async fn event(&mut self) -> Result<Event, Outage> {
        let link = &self.stream.reader;
        let message = tokio::select! {
            biased;
            () = link.until_lost(self.lost) => None,
            message = timeout(SILENCE_MAX, self.messages.next()) => match message {
                Ok(message) => message,
                Err(_) => {
                    let forbidden = link.forbidden().take();
                    return Err(link.outage(Failure::TimedOut(forbidden), WHAT));
                }
            },
        };
        link.count_connections();
        match message {
            Some(message) if link.lost() == self.lost => self.take(message),
            Some(_) | None => Err(link.outage(Failure::Disconnected, WHAT)),
        }
    }

    fn take(&mut self, message: Message) -> Result<Event, Outage> {
        let said = message.description.unwrap_or_default();
        match message.status.map(|status| status.as_u16()) {
            None => {
                self.refused_pulls = 0;
                let position = message.reply.as_deref().and_then(position_of);
                position
                    .map(|position| Event::Commit {
                        position,
                        commit: message.payload,
                    })
                    .ok_or_else(|| self.ended("a message without a position"))
            }
            Some(100) => Ok(Event::Nothing),
            // Expired.
            Some(408) => Ok(self.pull_ended()),
            Some(409) if said.eq_ignore_ascii_case("batch completed") => Ok(self.pull_ended()),
            Some(409) if said.to_ascii_lowercase().contains("exceeds maxbytes") => {
                self.refused_pulls += 1;
                if self.refused_pulls > REFUSED_PULLS_MAX {
                    let what = format!(
                        "{} has a message of more than {PULL_BYTES} bytes, which no bridge has written",
                        self.stream.names.whole
                    );
                    return Err(Outage::Unusable(what.into()));
                }
                Ok(self.pull_ended())
            }
            Some(status) => Err(self.ended(&format!("{said} ({status})"))),
        }
    }

    fn pull_ended(&mut self) -> Event {
        self.pulls = self.pulls.saturating_sub(1);
        Event::Nothing
    }

    fn ended(&self, why: &str) -> Outage {
        Outage::Unavailable(
            format!("a reader of {} has ended: {why}", self.stream.names.whole).into(),
        )
    }
}

impl Drop for Consumer {
    /// The server would do it by itself, later.
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let client = self.stream.reader.client().clone();
        let subject = format!(
            "$JS.API.CONSUMER.DELETE.{}.{}",
            self.stream.names.stream, self.name
        );
        // Bounded, and nothing depends on it.
        runtime.spawn(async move {
            let _ = timeout(ANSWER_TIME_MAX, client.publish(subject, Bytes::new())).await;
        });
    }
}

/// The position in the subject for acknowledgements: `$JS.ACK.STREAM.CONSUMER.DELIVERIES.POSITION.…` or
/// `$JS.ACK.DOMAIN.ACCOUNT.STREAM.CONSUMER.DELIVERIES.POSITION.…`, which has more parts.
fn position_of(subject: &str) -> Option<u64> {
    let parts: Vec<&str> = subject.strip_prefix("$JS.ACK.")?.split('.').collect();
    let index = match parts.len() {
        7 => 3,
        9.. => 5,
        _ => return None,
    };
    parts.get(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_in_both_forms_of_the_subject() {
        let of = position_of;
        assert_eq!(
            of("$JS.ACK.stream.reader.1.42.7.1700000000000000000.3"),
            Some(42)
        );
        assert_eq!(
            of("$JS.ACK._.hash.stream.reader.1.42.7.1700000000000000000.3"),
            Some(42)
        );
        assert_eq!(
            of("$JS.ACK.hub.hash.stream.reader.1.42.7.1700000000000000000.3.random"),
            Some(42)
        );
        for subject in [
            "",
            "$JS.ACK.",
            "$JS.ACK.a.b.c",
            "$JS.ACK.s.c.1.x.7.1.3",
            "_INBOX.a.b.c.d.e.f.g.h",
        ] {
            assert_eq!(of(subject), None, "{subject}");
        }
    }
}
