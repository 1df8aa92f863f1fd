//! Owns the steps of a delivery, from its headers to the durable batch.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Buf;
use http::{HeaderMap, header};
use tokio::time::{Instant, timeout};
use tokio_stream::Stream;

use super::{
    App, Deliveries, Options, Shared,
    age::Judged,
    body::{self, Body},
    budget::Held,
    error::Error,
    forgeries::Trial,
    pending::Pending,
    source::Client,
    status,
};
use crate::{
    decode,
    event::Batch,
    log::Appended,
    net::{
        fields::{self, Reader},
        quiet::Admitted,
    },
    plain,
    signature::{self, HeaderFault, Signature, VerifiedBody},
};

const SIGNATURE: &str = "x-webhook-signature";
/// Documented only for another API of Prelude: used if present, never required.
const KEY_ID: &str = "x-webhook-signature-key-id";
const TRACEPARENT: &str = "traceparent";

/// How many bytes of a body take as long to hash as one verification by a key of 2048 bits takes.
const HASHED_BYTES: usize = 32 * 1024;

/// Where a delivery comes from, and how long it has.
pub(super) struct Arrival<'r> {
    pub(super) pending: &'r Pending<'r>,
    pub(super) client: Client,
    pub(super) deadline: Instant,
}

/// Takes a delivery to `/webhooks/{app_id}`, or to `/webhooks` where `path_app` is `None`.
pub(super) async fn take<B: Buf>(
    shared: &Shared,
    path_app: Option<&str>,
    headers: &HeaderMap,
    arrival: &Arrival<'_>,
    mut chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
) -> Result<Appended, Error> {
    let bytes_max = shared.options.body_bytes_max;
    let too_large = || Error::BodyTooLarge { bytes_max };
    let (app, announced) = match check_head(shared, path_app, headers) {
        Ok(checked) => checked,
        Err(error) => {
            let rest = discard_unless_held_back(headers, chunks, bytes_max);
            return Err(arrival.pending.refuse_after(error, rest).await.0);
        }
    };
    let signature = match signature(headers) {
        Ok(signature) => signature,
        Err(error) => {
            // The size is checked before the signature, but no unsigned body is kept in memory for that.
            let rest = discard_unless_held_back(headers, chunks, bytes_max);
            let (error, length) = arrival.pending.refuse_after(error, rest).await;
            return Err(if length > bytes_max {
                too_large()
            } else {
                error
            });
        }
    };
    let Body { bytes, held } = match read(shared, announced, arrival, &mut chunks).await {
        Ok(body) => body,
        // The caller may still be sending.
        Err(
            error
            @ (Error::BodyTooLarge { .. } | Error::BodiesTooLarge { .. } | Error::BodyGaveWay),
        ) => {
            let rest = body::discard(chunks, bytes_max);
            return Err(arrival.pending.refuse_after(error, rest).await.0);
        }
        Err(error) => return Err(error),
    };
    shared.metrics.body_read(bytes.len());

    let app = match app {
        Some(app) => app,
        None => app_of_body(shared, &bytes)?,
    };
    let body = Body { bytes, held };
    let (verified, held) = verify(shared, app, body, &signature, headers, arrival).await?;
    let batch = decode(app, verified, headers)?;
    shared.note_events(app, &batch);
    let dates = batch.dates;
    let appended = match shared.check_age(app, &batch).await? {
        Judged::Repetition(appended) => appended,
        Judged::Append(doubt) => {
            let appended = shared.log.append(batch).await?;
            if appended.accepted > 0 {
                let peer = arrival.pending.peer.map(|peer| peer.address);
                shared.note_accepted(app, dates, doubt, peer);
            }
            appended
        }
    };
    drop(held);
    shared.note_appended(app, &appended);
    Ok(appended)
}

/// Decodes a body in the form that this source sends.
fn decode(app: &App, verified: VerifiedBody, headers: &HeaderMap) -> Result<Batch, decode::Error> {
    let traceparent = traceparent(headers);
    match &app.deliveries {
        Deliveries::Batches(_) => decode::batch(verified, &app.id, traceparent),
        Deliveries::SingleEvents(product) => {
            decode::single_event(verified, &app.id, *product, traceparent)
        }
    }
}

impl Shared {
    /// Counts the events of a batch that is durable, and logs that some of them are in the log with
    /// another content.
    fn note_appended(&self, app: &App, appended: &Appended) {
        let Appended {
            accepted,
            duplicates,
            changed,
            changed_id,
        } = appended;
        self.metrics
            .batch_appended(*accepted, *duplicates, *changed);
        if *changed == 0 {
            return;
        }
        if let Some(Admitted { unlogged }) = self.quiet.admit("duplicate_changed") {
            let first_id = changed_id.as_deref().map(plain::event_id);
            tracing::warn!(
                app = &*app.id,
                events = changed,
                first_id,
                unlogged,
                "events came again with the app, id and type of events in the log, but with another \
                 content: the log keeps the first, and the new content is dropped"
            );
        }
    }
}

/// Reads the body in the time that it has.
async fn read<B: Buf>(
    shared: &Shared,
    announced: Option<usize>,
    arrival: &Arrival<'_>,
    chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
) -> Result<Body, Error> {
    let Options {
        body_timeout,
        body_bytes_max,
        ..
    } = shared.options;
    let client = arrival.client;
    let reading = body::read(chunks, body_bytes_max, announced, &shared.bodies, client);
    let read = timeout(body_timeout, reading).await;
    read.map_err(|_| Error::BodyTooSlow {
        seconds: body_timeout.as_secs(),
    })?
}

/// Verifies a body when its turn comes.
async fn verify(
    shared: &Shared,
    app: &App,
    Body { bytes, held }: Body,
    signature: &Signature,
    headers: &HeaderMap,
    arrival: &Arrival<'_>,
) -> Result<(VerifiedBody, Held), Error> {
    let key_id = headers.get(KEY_ID).and_then(|value| value.to_str().ok());
    let hashing = u32::try_from(bytes.len() / HASHED_BYTES).unwrap_or(u32::MAX);
    let cost = app.keyring.cost(signature).saturating_add(hashing).max(1);
    let network = arrival.client.network;
    let mut attempt = Attempt {
        shared,
        app,
        pending: arrival.pending,
        trial: shared.forgeries.trial(network, cost, arrival.deadline),
        tried: AtomicBool::new(false),
    };
    if let Some(turn) = attempt.trial.turn() {
        // A body that is probably forged gives up its memory while others wait for some.
        let mut is_over = false;
        let waiting = async { is_over = arrival.pending.wait_open(turn).await };
        held.idle(waiting).await?;
        if !is_over {
            return Err(Error::Abandoned);
        }
    }
    let (keyring, turns) = (&app.keyring, &shared.verifications);
    let tried = &attempt.tried;
    let first = keyring.try_keys(bytes, signature, key_id, turns, tried);
    let mut digest = None;
    let verified = match first.await {
        Ok(verified) => Ok(verified),
        Err(unmatched) => {
            digest = Some(unmatched.digest().clone());
            // Waits without a turn, and its memory is there for others, so that a crowd that waits for a
            // key server keeps nobody out.
            held.idle(keyring.newer_keys(&unmatched)).await?;
            keyring
                .try_newer_keys(*unmatched, signature, key_id, turns, tried)
                .await
        }
    };
    match verified {
        Ok(verified) => {
            attempt.trial.genuine();
            // From now on nobody takes the connection from it.
            if let Some(peer) = attempt.pending.peer {
                peer.standing.prove();
            }
            Ok((verified, held))
        }
        Err(signature::Error::Mismatch) => {
            let signers = match &digest {
                Some(digest) => shared.signing_sources(app, digest, signature).await,
                None => Vec::new(),
            };
            let answer_at = attempt.forged();
            Err(Error::Forged { answer_at, signers })
        }
        Err(error) => Err(error.into()),
    }
}

/// A verification in progress. Dropped after a key was tried, it is paid for; if the sender has closed the
/// connection, it counts as a forgery.
struct Attempt<'s> {
    shared: &'s Shared,
    app: &'s App,
    pending: &'s Pending<'s>,
    trial: Trial<'s>,
    /// Whether a key was tried and did not verify the body.
    tried: AtomicBool,
}

impl Attempt<'_> {
    /// The delivery was forged. Returns when it may be answered.
    fn forged(&mut self) -> Instant {
        if let Some(peer) = self.pending.peer {
            peer.standing.discredit();
        }
        self.trial.forged()
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.trial.is_open() && self.tried.load(Ordering::Relaxed) {
            // It was not seen to be forged: a key that is fetched might have verified it.
            self.trial.undecided();
            if !self.pending.is_closed() {
                return;
            }
            let error = Error::ForgedAndGone;
            let code = status::code(&error);
            let app = Some(&*self.app.id);
            let peer = self.pending.address();
            self.shared.note_refusal(&error, code, app, peer);
        }
    }
}

/// What is known before the body is read: the app, if the path names it, and the length, if it is
/// announced.
fn check_head<'s>(
    shared: &'s Shared,
    path_app: Option<&str>,
    headers: &HeaderMap,
) -> Result<(Option<&'s App>, Option<usize>), Error> {
    let app = match path_app {
        Some(id) => Some(shared.apps.get(id).ok_or(Error::AppUnknown)?),
        None => None,
    };
    if !headers
        .get_all(header::CONTENT_TYPE)
        .iter()
        .all(|value| is_json(value.as_bytes()))
    {
        return Err(Error::ContentTypeUnknown);
    }
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if !encodings.all(|value| is_identity(value.as_bytes())) {
        return Err(Error::ContentEncoded);
    }
    let announced = headers.get(header::CONTENT_LENGTH);
    let Some(announced) = announced else {
        return if headers.contains_key(header::TRANSFER_ENCODING) {
            Ok((app, None))
        } else {
            Err(Error::LengthMissing)
        };
    };
    // The connection has checked that it is a number; one that is too large for us is too large.
    let announced = announced
        .to_str()
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usize::MAX);
    let bytes_max = shared.options.body_bytes_max;
    if announced > bytes_max {
        return Err(Error::BodyTooLarge { bytes_max });
    }
    Ok((app, Some(announced)))
}

/// `application/json` or anything `+json`, whatever its parameters; or nothing. Two types, in two lines or in
/// one, are accepted if both are JSON: then it does not matter which one counts.
fn is_json(content_type: &[u8]) -> bool {
    let types = fields::media_types(content_type);
    types.is_some_and(|types| {
        types.iter().all(|media_type| {
            media_type.essence.strip_prefix("application/") == Some("json")
                || media_type.essence.starts_with("application/")
                    && media_type.essence.ends_with("+json")
        })
    })
}

/// No encoding, in any number.
fn is_identity(content_encoding: &[u8]) -> bool {
    let codings = fields::list(content_encoding, Reader::token);
    codings.is_some_and(|codings| {
        codings
            .iter()
            .all(|coding| coding.eq_ignore_ascii_case(b"identity"))
    })
}

/// The only signature of a delivery. Two are refused, because two receivers could each check another
/// one.
fn signature(headers: &HeaderMap) -> Result<Signature, Error> {
    let mut values = headers.get_all(SIGNATURE).iter();
    let value = values.next().ok_or(Error::SignatureMissing)?;
    if values.next().is_some() {
        return Err(Error::SignatureRepeated);
    }
    let text = value
        .to_str()
        .map_err(|_| signature::Error::from(HeaderFault::Alphabet))?;
    Ok(Signature::parse(text)?)
}

/// The app that a body claims. The claim only selects the keys, which decide.
fn app_of_body<'s>(shared: &'s Shared, body: &[u8]) -> Result<&'s App, Error> {
    let is_app = |app: &&App| matches!(app.deliveries, Deliveries::Batches(_));
    if let Some(id) = decode::claimed_app_id(body) {
        let app = shared.apps.get(&*id).ok_or(Error::AppUnknown)?;
        return is_app(&app).then_some(app).ok_or(Error::PathWithoutSource);
    }
    // A body without an app is not a batch. Whether it is signed can be checked only if one app is
    // configured.
    let mut apps = shared.apps.values().filter(is_app);
    match (apps.next(), apps.next()) {
        (Some(app), None) => Ok(app),
        _ => Err(Error::AppUnnamed),
    }
}

/// Reads on for a moment, unless the caller waits for our word before it sends anything.
async fn discard_unless_held_back<B: Buf>(
    headers: &HeaderMap,
    chunks: impl Stream<Item = Result<B, warp::Error>> + Unpin,
    bytes_max: usize,
) -> usize {
    if headers.contains_key(header::EXPECT) {
        return 0;
    }
    body::discard(chunks, bytes_max).await
}

/// The trace of the request, if it is one (<https://www.w3.org/TR/trace-context/#traceparent-header>);
/// else nothing, as it is passed on to every subscriber.
fn traceparent(headers: &HeaderMap) -> &str {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let text = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        // Of two it is not known which one is the sender's.
        _ => "",
    };
    let is_hex = |part: &str| {
        part.bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.split('-');
    match [(); 5].map(|()| parts.next()) {
        [Some(version), Some(trace), Some(span), Some(flags), None]
            if [version, trace, span, flags].map(str::len) == [2, 32, 16, 2]
                && [version, trace, span, flags].into_iter().all(is_hex)
                && version != "ff"
                && !is_zero(trace)
                && !is_zero(span) =>
        {
            text
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_several_names() {
        for json in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=UTF-8",
            "application/cloudevents-batch+json",
            "application/json;profile=\"a;b,text/plain\"",
            "application/json;",
            "application/json, application/json",
            "",
            " , ",
        ] {
            assert!(is_json(json.as_bytes()), "{json}");
        }
        for other in [
            "text/plain",
            "application/json, text/plain",
            "text/plain;a=\"application/json\"",
            "application/json;a=\"b",
            "application/json text",
            "application/",
            "application/json/json",
            "*/*",
            "text/json",
            "application/jsonl",
            "application/xml",
            "json",
        ] {
            assert!(!is_json(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn an_encoding_is_none_or_no_encoding() {
        for none in [
            "",
            ",",
            "identity",
            "Identity",
            "identity,",
            "identity, identity",
        ] {
            assert!(is_identity(none.as_bytes()), "{none}");
        }
        for some in [
            "gzip",
            "identity, gzip",
            "identity;q=1",
            "\"identity\"",
            "iden tity",
        ] {
            assert!(!is_identity(some.as_bytes()), "{some}");
        }
    }

    #[test]
    fn only_a_real_trace_is_passed_on() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let of = |text: &str| {
            let headers = HeaderMap::from_iter([(
                header::HeaderName::from_static(TRACEPARENT),
                http::HeaderValue::from_str(text).unwrap(),
            )]);
            traceparent(&headers).to_owned()
        };
        assert_eq!(of(good), good);
        for bad in [
            "",
            "00",
            "x",
            &good.to_uppercase(),
            &format!("{good}-00"),
            &good.replace("00-", "ff-"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(of(bad), "", "{bad}");
        }
        assert_eq!(traceparent(&HeaderMap::new()), "");
    }
}
