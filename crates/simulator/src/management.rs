//! Prelude's management API for the webhooks of Prelude Auth, with its documented limits and errors, as far
//! as the simulator plays it. Turns a request that was read into an answer; knows nothing of sockets.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use subtle::ConstantTimeEq as _;

use super::{
    activation::{Challenge, Failure},
    event_type::{self, EventType, SourceKind},
    state::{Simulation, lock},
    webhooks::{self, Draft},
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the Authorization header must be `Bearer` and the management key")]
    Unauthorized,
    #[error("there is no app `{0}`")]
    UnknownApp(String),
    #[error("the keys are not served at the moment")]
    KeysUnavailable,
    #[error("there is nothing at this path")]
    UnknownPath,
    #[error("this method is not allowed here")]
    Method,
    #[error("the body is not valid: {0}")]
    Body(String),
    #[error("the body is larger than {0} bytes")]
    BodyTooLarge(usize),
    #[error("`{name}` is not an event type: take one of {list}", list = event_type::list(accepted))]
    Event {
        name: String,
        param: &'static str,
        accepted: Vec<EventType>,
    },
    /// The same from an API that does not say which event it means.
    #[error("a parameter is not valid")]
    Parameter(&'static str),
    #[error(transparent)]
    Webhook(#[from] webhooks::Error),
    #[error("the activation challenge failed: {0}")]
    Activation(#[from] Failure),
}

impl Error {
    /// The answer, in the form of the sibling endpoints that document one.
    pub(super) fn answer(&self, request_id: &str) -> (StatusCode, Value) {
        let (status, code) = match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::UnknownApp(_) => (StatusCode::NOT_FOUND, "app_not_found"),
            Self::KeysUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Self::UnknownPath => (StatusCode::NOT_FOUND, "not_found"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Body(_) | Self::Event { .. } | Self::Parameter(_) => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::Webhook(webhooks::Error::Unknown(_)) => {
                (StatusCode::NOT_FOUND, "webhook_not_found")
            }
            Self::Webhook(webhooks::Error::Invalid(_)) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Webhook(webhooks::Error::Limit) => {
                (StatusCode::CONFLICT, "webhook_limit_reached")
            }
            Self::Activation(_) => (StatusCode::BAD_REQUEST, "webhook_activation_failed"),
        };
        let kind = match status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::CONFLICT => "conflict",
            _ => "bad_request",
        };
        let mut body = json!({
            "code": code,
            "type": kind,
            "status": status.as_u16(),
            "message": self.to_string(),
            "request_id": request_id,
        });
        if let (Self::Event { param, .. } | Self::Parameter(param), Some(members)) =
            (self, body.as_object_mut())
        {
            members.insert("param".to_owned(), (*param).into());
        }
        (status, body)
    }
}

#[derive(Deserialize)]
struct DraftBody {
    url: Option<String>,
    verification_token: Option<String>,
    events: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct EventBody {
    event: String,
}

/// Answers a call. `path` is what follows `/v2/session/apps/`.
pub(super) async fn answer(
    simulation: &Arc<Simulation>,
    method: &Method,
    path: &str,
    authorization: Option<&[u8]>,
    body: &[u8],
) -> Result<(StatusCode, Option<Value>), Error> {
    let expected = format!("Bearer {}", simulation.options.management_token);
    let given = authorization.unwrap_or_default();
    if !bool::from(given.ct_eq(expected.as_bytes())) {
        return Err(Error::Unauthorized);
    }
    let segments: Vec<&str> = path.split('/').collect();
    let (app, rest) = match segments.as_slice() {
        [app, "webhooks", rest @ ..] => (*app, rest),
        _ => return Err(Error::UnknownPath),
    };
    // The webhooks of Verify and Notify are not registered: each request to Prelude names its URL.
    let found = simulation.apps.get(app);
    if found.is_none_or(|app| app.kind != SourceKind::Auth) {
        return Err(Error::UnknownApp(app.to_owned()));
    }
    let call = Call {
        simulation,
        app,
        body,
    };
    match (method.as_str(), rest) {
        ("POST", []) => call.create(),
        ("GET", []) => Ok(call.list()),
        (_, []) => Err(Error::Method),
        ("GET", [id]) => call.get(id),
        ("PATCH" | "PUT", [id]) => call.update(id),
        ("DELETE", [id]) => call.delete(id),
        (_, [_]) => Err(Error::Method),
        ("POST", [id, "activate"]) => call.activate(id).await,
        ("POST", [id, "deactivate"]) => call.deactivate(id),
        ("POST", [id, "events"]) => call.add_event(id),
        ("DELETE", [id, "events", event]) => call.remove_event(id, event),
        (_, [_, "activate" | "deactivate" | "events"] | [_, "events", _]) => Err(Error::Method),
        _ => Err(Error::UnknownPath),
    }
}

/// Asks the challenge of a webhook and switches it on if it is met.
pub(super) async fn activate(
    simulation: &Arc<Simulation>,
    app_id: &str,
    id: &str,
) -> Result<webhooks::Webhook, Error> {
    let webhook = lock(&simulation.registry).get(app_id, id)?.clone();
    let wide = lock(&simulation.wire).wide_challenge;
    let challenge = Challenge::new(lock(&simulation.random).next_u64(), wide);
    let asked = challenge
        .send(
            &simulation.client,
            &webhook.url,
            app_id,
            &webhook.verification_token,
            simulation.options.answer_timeout,
        )
        .await;
    let code = match &asked {
        Ok(()) | Err(Failure::Form | Failure::Number) => Some(200),
        Err(Failure::Status(status)) => Some(*status),
        Err(Failure::Url(_) | Failure::Unreachable | Failure::TimedOut) => None,
    };
    if let Some(code) = code {
        lock(&simulation.registry).note_http_code(id, code);
    }
    asked?;
    Ok(simulation.change_webhooks(|registry| registry.set_active(app_id, id, true))?)
}

type Answer = Result<(StatusCode, Option<Value>), Error>;

struct Call<'a> {
    simulation: &'a Arc<Simulation>,
    app: &'a str,
    body: &'a [u8],
}

impl Call<'_> {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(self.body).map_err(|error| Error::Body(error.to_string()))
    }

    fn draft(&self) -> Result<Draft, Error> {
        let body: DraftBody = self.parse()?;
        let events = body.events.map(|names| {
            let events = names.iter().map(|name| self.event_type(name, "events"));
            events.collect::<Result<_, _>>()
        });
        Ok(Draft {
            url: body.url,
            verification_token: body.verification_token,
            events: events.transpose()?,
        })
    }

    /// The type with this name, if the API takes it.
    fn event_type(&self, name: &str, param: &'static str) -> Result<EventType, Error> {
        let style = &self.simulation.options.api;
        let is_refused = |known: &EventType| {
            let mut refused = style.refuse_events.iter();
            refused.any(|refused| refused == known.as_str())
        };
        let mut accepted = EventType::AUTH.to_vec();
        accepted.retain(|known| !is_refused(known));
        match accepted
            .iter()
            .find(|known| known.as_str() == name)
            .copied()
        {
            Some(event_type) => Ok(event_type),
            None if style.vague_refusals => Err(Error::Parameter(param)),
            None => Err(Error::Event {
                name: name.to_owned(),
                param,
                accepted,
            }),
        }
    }

    fn create(&self) -> Answer {
        let draft = self.draft()?;
        let app = self.app;
        let made = self
            .simulation
            .change_webhooks(|registry| registry.create(app, draft))?;
        Ok(shown(StatusCode::CREATED, &made))
    }

    fn list(&self) -> (StatusCode, Option<Value>) {
        let registry = lock(&self.simulation.registry);
        let all: Vec<Value> = registry
            .of_app(self.app)
            .map(webhooks::Webhook::to_json)
            .collect();
        (StatusCode::OK, Some(json!({ "webhooks": all })))
    }

    fn get(&self, id: &str) -> Answer {
        let registry = lock(&self.simulation.registry);
        Ok(shown(StatusCode::OK, registry.get(self.app, id)?))
    }

    fn update(&self, id: &str) -> Answer {
        let draft = self.draft()?;
        let app = self.app;
        let changed = self
            .simulation
            .change_webhooks(|registry| registry.update(app, id, draft))?;
        Ok(shown(StatusCode::OK, &changed))
    }

    fn delete(&self, id: &str) -> Answer {
        self.simulation
            .change_webhooks(|registry| registry.delete(self.app, id))?;
        Ok((StatusCode::NO_CONTENT, None))
    }

    async fn activate(&self, id: &str) -> Answer {
        Ok(shown(
            StatusCode::OK,
            &activate(self.simulation, self.app, id).await?,
        ))
    }

    fn deactivate(&self, id: &str) -> Answer {
        let app = self.app;
        let changed = self
            .simulation
            .change_webhooks(|registry| registry.set_active(app, id, false))?;
        Ok(shown(StatusCode::OK, &changed))
    }

    fn add_event(&self, id: &str) -> Answer {
        let EventBody { event } = self.parse()?;
        let event = self.event_type(&event, "event")?;
        let app = self.app;
        let changed = self
            .simulation
            .change_webhooks(|registry| registry.add_event(app, id, event))?;
        Ok(shown(StatusCode::CREATED, &changed))
    }

    fn remove_event(&self, id: &str, event: &str) -> Answer {
        let event = self.event_type(event, "event")?;
        let app = self.app;
        let changed = self
            .simulation
            .change_webhooks(|registry| registry.remove_event(app, id, event))?;
        Ok(shown(StatusCode::OK, &changed))
    }
}

fn shown(status: StatusCode, webhook: &webhooks::Webhook) -> (StatusCode, Option<Value>) {
    (status, Some(json!({ "webhook": webhook.to_json() })))
}
