//! The simulator's HTTP server on loopback: the keys of every app and source, and the management API. Owns sockets,
//! paths and limits; decides nothing about webhooks.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{
    event_type::SourceKind,
    management,
    state::{App, Simulation, lock},
};

/// The path of an app's key set on its own host.
pub(super) const JWKS_PATH: &str = "/.well-known/jwks.json";

/// The path of the PEM keys of a source of Verify or Notify, below `/sources/{id}`. Prelude shows them in its
/// dashboard only.
pub(super) const PEM_PATH: &str = "/public-key.pem";

const CONNECTIONS_MAX: usize = 256;
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_READ_TIMEOUT: Duration = Duration::from_secs(5);
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Long enough for the processor to recover from running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Response<Full<Bytes>>;

/// Accepts connections until the simulator stops.
pub(super) async fn serve(listener: TcpListener, simulation: Arc<Simulation>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stopped = simulation.stopped.clone();
    let accept = async {
        // The semaphore is never closed, so the loop ends with the select below.
        while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let connection = connection(stream, Arc::clone(&simulation));
            simulation.tasks.spawn(async move {
                connection.await;
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stopped.cancelled() => {}
    }
}

async fn connection(stream: TcpStream, simulation: Arc<Simulation>) {
    let stopped = simulation.stopped.clone();
    let service = service_fn(move |request| {
        let simulation = Arc::clone(&simulation);
        async move { Ok::<_, Infallible>(answer(&simulation, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error of a connection concerns its client only.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stopped.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(simulation: &Arc<Simulation>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if let Some(app_id) = jwks_app(simulation, path, &parts.headers) {
        return jwks(simulation, &parts.method, &app_id);
    }
    let source = path.strip_prefix("/sources/");
    if let Some(id) = source.and_then(|rest| rest.strip_suffix(PEM_PATH)) {
        return pem(simulation, &parts.method, id);
    }
    let Some(rest) = path.strip_prefix("/v2/session/apps/") else {
        return if path == "/" {
            map(simulation)
        } else {
            failure(simulation, &management::Error::UnknownPath)
        };
    };
    let body = match read(body).await {
        Ok(body) => body,
        Err(error) => return failure(simulation, &error),
    };
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    match management::answer(simulation, &parts.method, rest, authorization, &body).await {
        Ok((status, body)) => respond(status, body.as_ref()),
        Err(error) => failure(simulation, &error),
    }
}

async fn read(body: Incoming) -> Result<Bytes, management::Error> {
    let collect = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_READ_TIMEOUT, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(management::Error::BodyTooLarge(BODY_BYTES_MAX))
        }
        Ok(Err(_)) => Err(management::Error::Body("it broke off".to_owned())),
        Err(_) => Err(management::Error::Body(
            "it did not arrive in time".to_owned(),
        )),
    }
}

/// Whose key set a request asks for: `/apps/{app}/.well-known/jwks.json` names it; the bare path
/// goes by the first label of the host (`54e9ujn.localhost`), or to the only app there is.
fn jwks_app(simulation: &Simulation, path: &str, headers: &HeaderMap) -> Option<String> {
    if let Some(rest) = path.strip_prefix("/apps/") {
        return rest.strip_suffix(JWKS_PATH).map(str::to_owned);
    }
    if path != JWKS_PATH {
        return None;
    }
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let label = host.split(['.', ':']).next().unwrap_or_default();
    if simulation.apps.contains_key(label) {
        return Some(label.to_owned());
    }
    let apps = simulation.apps.iter();
    let mut ids = apps
        .filter(|(_, app)| app.kind == SourceKind::Auth)
        .map(|(id, _)| id);
    match (ids.next(), ids.next()) {
        (Some(only), None) => Some(only.clone()),
        // Without a name the app is not known; the empty id gets the 404 that says so.
        _ => Some(String::new()),
    }
}

fn jwks(simulation: &Simulation, method: &Method, app_id: &str) -> Answer {
    match keys_of(simulation, method, app_id, |kind| kind == SourceKind::Auth) {
        Ok(app) => respond(StatusCode::OK, Some(&published(simulation, app))),
        Err(error) => failure(simulation, &error),
    }
}

fn pem(simulation: &Simulation, method: &Method, source_id: &str) -> Answer {
    let app = match keys_of(simulation, method, source_id, |kind| {
        kind != SourceKind::Auth
    }) {
        Ok(app) => app,
        Err(error) => return failure(simulation, &error),
    };
    let Ok(text) = lock(&app.ring).pem() else {
        return respond(StatusCode::INTERNAL_SERVER_ERROR, None);
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let pem = header::HeaderValue::from_static("application/x-pem-file");
    response.headers_mut().insert(header::CONTENT_TYPE, pem);
    response
}

/// The app or source whose keys are requested.
fn keys_of<'a>(
    simulation: &'a Simulation,
    method: &Method,
    id: &str,
    is_of_kind: impl Fn(SourceKind) -> bool,
) -> Result<&'a App, management::Error> {
    let found = simulation.apps.get(id).filter(|app| is_of_kind(app.kind));
    let app = found.ok_or_else(|| management::Error::UnknownApp(id.to_owned()))?;
    if method != Method::GET && method != Method::HEAD {
        return Err(management::Error::Method);
    }
    app.count_jwks_fetch();
    if !app.jwks_up.load(Ordering::Relaxed) {
        return Err(management::Error::KeysUnavailable);
    }
    Ok(app)
}

/// An app's key set as it is served.
pub(super) fn published(simulation: &Simulation, app: &App) -> Value {
    let style = lock(&simulation.wire).key_set;
    lock(&app.ring).jwks(style)
}

/// The page for a person who opens the address in a browser.
fn map(simulation: &Simulation) -> Answer {
    let (mut apps, mut sources) = (Vec::new(), Vec::new());
    for (id, app) in &simulation.apps {
        if app.kind == SourceKind::Auth {
            apps.push(json!({
                "id": id,
                "jwks": format!("/apps/{id}{JWKS_PATH}"),
                "webhooks": format!("/v2/session/apps/{id}/webhooks"),
            }));
        } else {
            sources.push(json!({
                "id": id,
                "kind": app.kind.as_str(),
                "pem": format!("/sources/{id}{PEM_PATH}"),
            }));
        }
    }
    let map = json!({ "simulator": "Prelude", "apps": apps, "sources": sources });
    respond(StatusCode::OK, Some(&map))
}

fn failure(simulation: &Simulation, error: &management::Error) -> Answer {
    let (status, body) = error.answer(&simulation.request_id());
    respond(status, Some(&body))
}

fn respond(status: StatusCode, body: Option<&Value>) -> Answer {
    let bytes = body
        .map(|body| Bytes::from(body.to_string()))
        .unwrap_or_default();
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = status;
    if body.is_some() {
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    response
}
