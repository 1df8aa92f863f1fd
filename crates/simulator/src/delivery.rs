//! Batches on their way: one signed POST an attempt, and attempts by the schedule until the
//! receiver answers 200 or two weeks have passed. Every attempt is entered in the ledger. Knows
//! nothing of where batches come from.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::{
    Error,
    batch::Batch,
    keys::SigningKey,
    ledger::{Attempt, AttemptResult, DeliveryId, Outcome},
    state::{Shared, lock},
};

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A sender that hangs up does so within this time.
const HANG_UP_MILLIS_MAX: usize = 20;

/// What came back for one POST.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body, cut at 64 KiB.
    pub body: Bytes,
}

/// A batch on its way. Dropping it does not stop the delivery.
#[derive(Debug)]
pub struct Ticket {
    delivery: JoinHandle<Outcome>,
}

impl Ticket {
    /// Waits for the end: a 200, the end of the schedule, or the end of webhook or simulator.
    pub async fn outcome(self) -> Outcome {
        self.delivery.await.unwrap_or(Outcome::Abandoned)
    }
}

/// Puts a batch on its way. Waits while as many are as may be.
pub(super) async fn start(
    shared: &Arc<Shared>,
    webhook_id: &str,
    batch: Batch,
) -> Result<Ticket, Error> {
    if lock(&shared.registry).by_id(webhook_id).is_none() {
        return Err(Error::UnknownWebhook(webhook_id.to_owned()));
    }
    // It may be another app than the webhook's: a receiver must refuse such a batch.
    if !shared.apps.contains_key(batch.app_id()) {
        return Err(Error::UnknownApp(batch.app_id().to_owned()));
    }
    let permit = tokio::select! {
        permit = Arc::clone(&shared.deliveries).acquire_owned() => permit,
        () = shared.stopped.cancelled() => return Err(Error::Stopped),
    };
    let permit = permit.map_err(|_| Error::Stopped)?;
    let id = lock(&shared.ledger).open(webhook_id, &batch);
    let under_way = UnderWay::new(Arc::clone(shared), permit);
    let delivery = OneDelivery {
        id,
        webhook_id: webhook_id.to_owned(),
        batch,
        under_way,
    };
    Ok(Ticket {
        delivery: shared.tasks.spawn(delivery.run()),
    })
}

/// One POST without retries and without an entry in the ledger.
pub(super) async fn post(
    shared: &Arc<Shared>,
    url: &str,
    batch: &Batch,
) -> Result<Answer, AttemptFailure> {
    let request = request(shared, url, batch).await?;
    let answer = request
        .send()
        .await
        .map_err(|error| AttemptFailure::Http(classify(&error)))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = reqwest::Body::from(answer);
    let mut read = BytesMut::new();
    while read.len() < ANSWER_BYTES_MAX
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| AttemptFailure::Http(classify(&error)))?;
        if let Ok(data) = frame.into_data() {
            let room = ANSWER_BYTES_MAX - read.len();
            read.extend_from_slice(data.get(..room).unwrap_or(&data));
        }
    }
    Ok(Answer {
        status,
        headers,
        body: read.freeze(),
    })
}

/// Why a POST had no answer.
#[derive(Debug)]
pub(super) enum AttemptFailure {
    Http(AttemptResult),
    Own(Error),
}

/// Signs a body away from the async threads: it takes milliseconds.
pub(super) async fn sign(shared: &Shared, app_id: &str, body: Bytes) -> Result<Signed, Error> {
    let app = shared
        .apps
        .get(app_id)
        .ok_or_else(|| Error::UnknownApp(app_id.to_owned()))?;
    let key: SigningKey = lock(&app.ring).current().clone();
    let style = lock(&shared.wire).signature;
    let key_id = key.id().to_owned();
    let header = tokio::task::spawn_blocking(move || key.sign(&body, style))
        .await
        .map_err(|_| Error::Stopped)??;
    Ok(Signed { header, key_id })
}

/// The value of `X-Webhook-Signature`, and which key made it.
pub(super) struct Signed {
    pub(super) header: String,
    pub(super) key_id: String,
}

async fn request(
    shared: &Arc<Shared>,
    url: &str,
    batch: &Batch,
) -> Result<reqwest::RequestBuilder, AttemptFailure> {
    // Signed for each attempt, as a sender without a store of signatures would.
    let signed = sign(shared, batch.app_id(), batch.body().clone())
        .await
        .map_err(AttemptFailure::Own)?;
    let wire = *lock(&shared.wire);
    let mut request = shared
        .client
        .post(url)
        .timeout(shared.options.answer_timeout)
        .header("content-type", "application/json")
        .header("x-webhook-signature", signed.header)
        .body(batch.body().clone());
    if wire.key_id_header {
        request = request.header("x-webhook-signature-key-id", signed.key_id);
    }
    if wire.traceparent {
        let mut dice = lock(&shared.dice);
        let (high, low, span) = (dice.next_u64(), dice.next_u64(), dice.next_u64() | 1);
        request = request.header(
            "traceparent",
            format!("00-{high:016x}{low:016x}-{span:016x}-01"),
        );
    }
    Ok(request)
}

fn classify(error: &reqwest::Error) -> AttemptResult {
    if error.is_timeout() {
        AttemptResult::TimedOut
    } else if error.is_connect() || error.is_builder() {
        AttemptResult::Unreachable
    } else {
        AttemptResult::Broken
    }
}

/// Counts a delivery as long as it lives, however its task ends.
struct UnderWay {
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl UnderWay {
    fn new(shared: Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        shared.outstanding.send_modify(|count| *count += 1);
        Self {
            shared,
            _permit: permit,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared
            .outstanding
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

struct OneDelivery {
    id: DeliveryId,
    webhook_id: String,
    batch: Batch,
    under_way: UnderWay,
}

impl OneDelivery {
    async fn run(self) -> Outcome {
        let shared = Arc::clone(&self.under_way.shared);
        let stopped = shared.stopped.clone();
        let outcome = tokio::select! {
            outcome = self.deliver() => outcome,
            () = stopped.cancelled() => Outcome::Abandoned,
        };
        lock(&shared.ledger).close(self.id, outcome);
        outcome
    }

    async fn deliver(&self) -> Outcome {
        let shared = &self.under_way.shared;
        let faults = *lock(&shared.faults);
        if shared.happens(faults.hold_back) {
            tokio::time::sleep(faults.hold_back_for).await;
        }
        let mut pauses = shared.options.retry.pauses();
        loop {
            match self.attempt().await {
                None => return Outcome::Abandoned,
                Some(result) if result.is_acknowledged() => break,
                Some(_) => {}
            }
            let Some(pause) = pauses.next() else {
                return Outcome::GaveUp;
            };
            tokio::time::sleep(pause.wait).await;
        }
        let share = lock(&shared.faults).duplicates;
        if shared.happens(share) {
            // Whatever becomes of the repetition, the batch is delivered.
            let _ = self.attempt().await;
        }
        Outcome::Acknowledged
    }

    /// One attempt, entered in the ledger; none if the webhook is no longer there to be called.
    async fn attempt(&self) -> Option<AttemptResult> {
        let shared = &self.under_way.shared;
        let _permit = shared.requests.acquire().await.ok()?;
        let url = {
            let registry = lock(&shared.registry);
            let webhook = registry
                .by_id(&self.webhook_id)
                .filter(|webhook| webhook.active)?;
            webhook.url.clone()
        };
        let (at, started) = (Timestamp::now(), Instant::now());
        let result = self.post_with_faults(&url).await?;
        let attempt = Attempt {
            at,
            took: started.elapsed(),
            result,
        };
        lock(&shared.ledger).record(self.id, attempt);
        if let AttemptResult::Status(status) = result {
            lock(&shared.registry).note_http_code(&self.webhook_id, status);
        }
        Some(result)
    }

    async fn post_with_faults(&self, url: &str) -> Option<AttemptResult> {
        let shared = &self.under_way.shared;
        let faults = *lock(&shared.faults);
        let posted = if shared.happens(faults.hang_up) {
            let millis = lock(&shared.dice).below(HANG_UP_MILLIS_MAX);
            let patience = std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
            let posted = tokio::time::timeout(patience, post(shared, url, &self.batch)).await;
            posted.unwrap_or(Err(AttemptFailure::Http(AttemptResult::Broken)))
        } else {
            post(shared, url, &self.batch).await
        };
        match posted {
            Ok(answer) if shared.happens(faults.lose_answers) => {
                Some(AttemptResult::AnswerLost(answer.status.as_u16()))
            }
            Ok(answer) => Some(AttemptResult::Status(answer.status.as_u16())),
            Err(AttemptFailure::Http(result)) => Some(result),
            Err(AttemptFailure::Own(error)) => {
                tracing::error!(%error, "the simulator cannot send");
                None
            }
        }
    }
}
