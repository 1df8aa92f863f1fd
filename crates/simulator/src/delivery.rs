//! Delivers batches: each attempt is one signed POST, and attempts follow the schedule until the
//! receiver answers 200 or two weeks have passed. The ledger records every attempt. Knows nothing of
//! where batches come from.

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
    state::{Simulation, lock},
};

/// More of an answer than this is not read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// With the fault `hang_up`, the sender closes the connection within this time.
const HANG_UP_MILLIS_MAX: usize = 20;

/// The answer to one POST.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body, cut at 64 KiB.
    pub body: Bytes,
}

/// A delivery in progress. Dropping it does not stop the delivery.
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

/// Starts to deliver a batch. Waits while the limit of batches in progress is reached.
pub(super) async fn start(
    simulation: &Arc<Simulation>,
    webhook_id: &str,
    batch: Batch,
) -> Result<Ticket, Error> {
    if lock(&simulation.registry).by_id(webhook_id).is_none() {
        return Err(Error::UnknownWebhook(webhook_id.to_owned()));
    }
    // It may be another app than the webhook's: a receiver must refuse such a batch.
    if !simulation.apps.contains_key(batch.app_id()) {
        return Err(Error::UnknownApp(batch.app_id().to_owned()));
    }
    let permit = tokio::select! {
        permit = Arc::clone(&simulation.deliveries).acquire_owned() => permit,
        () = simulation.stopped.cancelled() => return Err(Error::Stopped),
    };
    let permit = permit.map_err(|_| Error::Stopped)?;
    let id = lock(&simulation.ledger).open(webhook_id, &batch);
    let under_way = UnderWay::new(Arc::clone(simulation), permit);
    let delivery = OneDelivery {
        id,
        webhook_id: webhook_id.to_owned(),
        batch,
        under_way,
    };
    Ok(Ticket {
        delivery: simulation.tasks.spawn(delivery.run()),
    })
}

/// One POST without retries and without an entry in the ledger.
pub(super) async fn post(
    simulation: &Arc<Simulation>,
    url: &str,
    batch: &Batch,
) -> Result<Answer, AttemptFailure> {
    let request = request(simulation, url, batch).await?;
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

/// Signs a body on a blocking thread: it takes milliseconds.
pub(super) async fn sign(
    simulation: &Simulation,
    app_id: &str,
    body: Bytes,
) -> Result<Signed, Error> {
    let app = simulation
        .apps
        .get(app_id)
        .ok_or_else(|| Error::UnknownApp(app_id.to_owned()))?;
    let key: SigningKey = lock(&app.ring).current().clone();
    let style = lock(&simulation.wire).signature;
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
    simulation: &Arc<Simulation>,
    url: &str,
    batch: &Batch,
) -> Result<reqwest::RequestBuilder, AttemptFailure> {
    // Signed for each attempt, as a sender that does not store signatures would.
    let signed = sign(simulation, batch.app_id(), batch.body().clone())
        .await
        .map_err(AttemptFailure::Own)?;
    let wire = *lock(&simulation.wire);
    let mut request = simulation
        .client
        .post(url)
        .timeout(simulation.options.answer_timeout)
        .header("content-type", "application/json")
        .header("x-webhook-signature", signed.header)
        .body(batch.body().clone());
    if wire.key_id_header {
        request = request.header("x-webhook-signature-key-id", signed.key_id);
    }
    if wire.traceparent {
        let mut random = lock(&simulation.random);
        let (high, low, span) = (random.next_u64(), random.next_u64(), random.next_u64() | 1);
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

/// Counts a delivery until it is dropped, however its task ends.
struct UnderWay {
    simulation: Arc<Simulation>,
    _permit: OwnedSemaphorePermit,
}

impl UnderWay {
    fn new(simulation: Arc<Simulation>, permit: OwnedSemaphorePermit) -> Self {
        simulation.outstanding.send_modify(|count| *count += 1);
        Self {
            simulation,
            _permit: permit,
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.simulation
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
        let simulation = Arc::clone(&self.under_way.simulation);
        let stopped = simulation.stopped.clone();
        let outcome = tokio::select! {
            outcome = self.deliver() => outcome,
            () = stopped.cancelled() => Outcome::Abandoned,
        };
        lock(&simulation.ledger).close(self.id, outcome);
        outcome
    }

    async fn deliver(&self) -> Outcome {
        let simulation = &self.under_way.simulation;
        let faults = *lock(&simulation.faults);
        if simulation.happens(faults.hold_back) {
            tokio::time::sleep(faults.hold_back_for).await;
        }
        let mut pauses = simulation.options.retry.pauses();
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
        let share = lock(&simulation.faults).duplicates;
        if simulation.happens(share) {
            // The batch is delivered, whether the repetition succeeds or not.
            let _ = self.attempt().await;
        }
        Outcome::Acknowledged
    }

    /// Makes one attempt and records it; `None` if the webhook has been removed or deactivated.
    async fn attempt(&self) -> Option<AttemptResult> {
        let simulation = &self.under_way.simulation;
        let _permit = simulation.requests.acquire().await.ok()?;
        let url = {
            let registry = lock(&simulation.registry);
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
        lock(&simulation.ledger).record(self.id, attempt);
        if let AttemptResult::Status(status) = result {
            lock(&simulation.registry).note_http_code(&self.webhook_id, status);
        }
        Some(result)
    }

    async fn post_with_faults(&self, url: &str) -> Option<AttemptResult> {
        let simulation = &self.under_way.simulation;
        let faults = *lock(&simulation.faults);
        let posted = if simulation.happens(faults.hang_up) {
            let millis = lock(&simulation.random).below(HANG_UP_MILLIS_MAX);
            let patience = std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(0));
            let posted = tokio::time::timeout(patience, post(simulation, url, &self.batch)).await;
            posted.unwrap_or(Err(AttemptFailure::Http(AttemptResult::Broken)))
        } else {
            post(simulation, url, &self.batch).await
        };
        match posted {
            Ok(answer) if simulation.happens(faults.lose_answers) => {
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
