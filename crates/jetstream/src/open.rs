//! Opens a stream: connects, creates it or checks it, and tries what a bridge has to do.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use prelude_bridge_log::sequencer::{Outage, Position};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    answer::{Answer, interpret},
    api::{AccountInfo, ApiError, StreamInfo, code},
    error::OpenError,
    follow::Follower,
    link::{Failure, Link},
    options::{Names, Options},
    sequencer::JetStream,
    settings::{MESSAGE_BYTES, SERVER_VERSION, is_recent, new_stream, problems, warnings},
    stream::{ANSWER_TIME_MAX, Stream, expect_last},
};

/// How long the servers may take to have a leader.
const LEADER_TIME_MAX: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

/// A stream that keeps the promises of the log.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub sequencer: Arc<JetStream>,
    /// What an operator should know of it.
    pub warnings: Vec<String>,
}

/// Connects to NATS, creates the stream or checks it, and refuses one that would break a promise of the log.
/// Changes nothing of a stream that exists.
///
/// # Errors
/// [`OpenError`] says what to do. Takes less than a minute.
pub async fn open(options: Options) -> Result<Opened, OpenError> {
    options.check()?;
    let names = Names::new(&options);
    let connections = watch::Sender::new(0);
    let connect = || Link::connect(&options, Arc::clone(&names.whole), connections.clone());
    let (writer, reader) = (connect().await?, connect().await?);
    check_server(&writer)?;
    let opening = Opening {
        options: &options,
        names: &names,
        link: &writer,
        end: Instant::now() + LEADER_TIME_MAX,
    };
    let end = opening.end;
    let account = opening.account().await?;
    let info = opening.create_or_find().await?;
    let found = problems(&info.config, &options, &names);
    if !found.is_empty() {
        return Err(OpenError::Stream {
            stream: names.stream,
            problems: found,
        });
    }
    opening.try_append().await?;
    let mut warnings = warnings(&info, &account, &options, &names);
    let sequencer = JetStream::new(Stream {
        created: info.created,
        seen: AtomicU64::new(0),
        names,
        writer,
        reader,
        connections,
    });
    // As after an election, a reader that was just created may have nobody who answers it for a moment.
    while let Err(error) = try_reading(&sequencer.stream).await {
        let passes = matches!(error, OpenError::Unavailable(_)) && Instant::now() < end;
        if !passes {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
    if let Err(why) = sequencer.questions.try_asking().await {
        warnings.push(format!(
            "the bridges cannot ask each other over NATS ({why}), which makes them slower under load: let the \
             user publish and subscribe to {}",
            sequencer.stream.names.peer('>')
        ));
    }
    Ok(Opened {
        sequencer: Arc::new(sequencer),
        warnings,
    })
}

/// What it says of itself when a connection is made.
fn check_server(link: &Link) -> Result<(), OpenError> {
    let server = link.client().server_info();
    let (major, minor) = SERVER_VERSION;
    if !is_recent(&server.version) {
        return Err(OpenError::Server(format!(
            "the server {} of NATS has version {}, and {major}.{minor} is needed: earlier ones could lose \
             acknowledged commits when another leader was elected; upgrade all servers to the latest patch",
            server.server_name, server.version
        )));
    }
    if server.max_payload < MESSAGE_BYTES {
        return Err(OpenError::Server(format!(
            "the server {} of NATS takes messages of {} bytes, and commits have up to {MESSAGE_BYTES}: write \
             `max_payload: 8MB` in the configuration of all servers",
            server.server_name, server.max_payload
        )));
    }
    Ok(())
}

struct Opening<'a> {
    options: &'a Options,
    names: &'a Names,
    link: &'a Link,
    /// Until then servers may be electing a leader.
    end: Instant,
}

impl Opening<'_> {
    /// Asks until there is an answer that does not pass by itself.
    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        subject: &str,
        payload: Bytes,
    ) -> Result<Result<T, ApiError>, OpenError> {
        loop {
            let answer = self
                .link
                .api(subject, payload.clone(), ANSWER_TIME_MAX)
                .await;
            let whole = &self.names.whole;
            let what = match answer {
                Ok(Err(error))
                    if matches!(error.err_code, code::NO_META_LEADER | code::STREAM_OFFLINE) =>
                {
                    format!("{whole} has no leader: {}", error.description)
                }
                Ok(answer) => return Ok(answer),
                Err(Failure::TimedOut(Some(forbidden))) => {
                    return Err(OpenError::Permission(forbidden));
                }
                Err(Failure::NoResponders) if Instant::now() >= self.end => {
                    return Err(no_jetstream("no server has it enabled"));
                }
                Err(failure) => self.link.outage(failure, subject).to_string(),
            };
            if Instant::now() >= self.end {
                return Err(OpenError::Unavailable(what));
            }
            sleep(PAUSE).await;
        }
    }

    async fn account(&self) -> Result<AccountInfo, OpenError> {
        match self.ask("$JS.API.INFO", Bytes::new()).await? {
            Ok(account) => Ok(account),
            Err(error) => Err(self.refused(&error)),
        }
    }

    async fn create_or_find(&self) -> Result<StreamInfo, OpenError> {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.names.stream);
        match self.ask(&subject, Bytes::new()).await? {
            Ok(info) => return Ok(info),
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => {}
            Err(error) => return Err(self.refused(&error)),
        }
        if !self.options.create {
            let stream = self.names.stream.clone();
            return Err(OpenError::Missing { stream });
        }
        let settings = new_stream(self.options, self.names);
        let found = problems(&settings, self.options, self.names);
        if !found.is_empty() {
            // Not of the stream, which is not there, but of what is configured.
            let reason = format!("what is configured breaks a promise: {}", found.join("; "));
            return Err(OpenError::Create {
                stream: self.names.stream.clone(),
                reason,
            });
        }
        let settings = serde_json::to_vec(&settings).unwrap_or_default();
        let create = format!("$JS.API.STREAM.CREATE.{}", self.names.stream);
        let settings = Bytes::from(settings);
        loop {
            match self.ask::<StreamInfo>(&create, settings.clone()).await? {
                Ok(_) => break,
                // Another bridge was faster.
                Err(error) if error.err_code == code::NAME_EXISTS => break,
                // The servers of a cluster that starts do not know each other yet.
                Err(error)
                    if error.err_code == code::NO_SUITABLE_PEERS && Instant::now() < self.end =>
                {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(self.refused(&error)),
            }
        }
        self.await_leader(&subject).await
    }

    /// A stream that was just created has no leader for a moment.
    async fn await_leader(&self, subject: &str) -> Result<StreamInfo, OpenError> {
        loop {
            match self.ask(subject, Bytes::new()).await? {
                Ok(info) => return Ok(info),
                Err(error) if Instant::now() >= self.end => return Err(self.refused(&error)),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn refused(&self, error: &ApiError) -> OpenError {
        let ApiError {
            err_code,
            description,
        } = error;
        let stream = self.names.stream.clone();
        let remedy = match *err_code {
            code::NOT_ENABLED_FOR_ACCOUNT | code::NOT_ENABLED | code::NO_LIMITS => {
                return no_jetstream(description);
            }
            code::REPLICAS_WITHOUT_CLUSTER => {
                "more than one replica needs a cluster: start more servers as one, or configure one replica, \
                 which loses events with its disk"
            }
            code::NO_SUITABLE_PEERS => {
                "there are fewer servers with room than replicas: start more, or configure fewer"
            }
            code::SUBJECT_OVERLAP => {
                "another stream takes its subject: take it out of that stream, or use another name"
            }
            code::STORAGE_EXCEEDED | code::INSUFFICIENT_RESOURCES | code::ACCOUNT_LIMITS => {
                "its limit of bytes is reserved, and a server (max_file_store) or the account (max_storage) has \
                 not so much left: raise that, or lower the retention's bytes"
            }
            code::BYTES_MAX_REQUIRED | code::BYTES_MAX_EXCEEDED => {
                "the account limits the bytes of a stream: set the retention's bytes below that"
            }
            code::STREAMS_MAX => {
                "the account has as many streams as it may: raise that, or remove one"
            }
            _ => "see the log of the server",
        };
        OpenError::Create {
            stream,
            reason: format!("{description} (error {err_code}): {remedy}"),
        }
    }

    /// A commit that nobody can store: only who may publish is told so.
    async fn try_append(&self) -> Result<(), OpenError> {
        let impossible = Position(1 << 62);
        loop {
            let headers = expect_last(impossible.0 - 1, self.names);
            let answer = self.link.request(
                &self.names.commits,
                Some(headers),
                Bytes::new(),
                ANSWER_TIME_MAX,
            );
            let outage = match answer.await {
                Ok(message) => match interpret(&message.payload, impossible, self.names) {
                    Answer::Refused { .. } | Answer::Won => return Ok(()),
                    // It will be said of each commit, until there is room.
                    Answer::Outage(Outage::Full(_)) => return Ok(()),
                    Answer::Outage(outage) => outage,
                },
                Err(Failure::TimedOut(Some(forbidden))) => {
                    return Err(OpenError::Permission(forbidden));
                }
                Err(failure) => self.link.outage(failure, "a commit"),
            };
            if Instant::now() >= self.end {
                return Err(OpenError::Unavailable(outage.to_string()));
            }
            sleep(PAUSE).await;
        }
    }
}

fn no_jetstream(why: &str) -> OpenError {
    OpenError::NoJetStream(format!(
        "there is no JetStream ({why}): write `jetstream {{ store_dir: …, sync_interval: always }}` in the \
         configuration of the servers, and enable it for the account"
    ))
}

/// Gets and follows: both need permissions of their own.
async fn try_reading(stream: &Arc<Stream>) -> Result<(), OpenError> {
    let said = |outage: Outage| {
        let what = outage.to_string();
        if what.to_ascii_lowercase().contains("permissions violation") {
            OpenError::Permission(what)
        } else {
            OpenError::Unavailable(what)
        }
    };
    stream.get(Position(1)).await.map_err(said)?;
    let ends = stream.ends().await.map_err(said)?;
    match Follower::new(Arc::clone(stream), ends.last.next())
        .try_reading()
        .await
    {
        // Retention may have been faster.
        Ok(()) | Err(Outage::Removed { .. }) => Ok(()),
        Err(outage) => Err(said(outage)),
    }
}
