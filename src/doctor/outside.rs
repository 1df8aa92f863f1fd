//! Checks everything that needs a socket: key sets, the clock, ports, the public URL, gRPC.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

use super::{ANSWER_TIMEOUT, Check, step_up};
use crate::{
    client,
    config::{Config, EventSource, KeySource, SourceKind},
    event::UnixMicros,
    management::{
        challenge::{self, Finding},
        is_loopback,
    },
    net::tls::Trouble,
    signature::{self, FetchFault},
};

/// With a larger difference events get wrong times; from minutes on, certificates seem invalid.
const CLOCK_OFF_MAX: SignedDuration = SignedDuration::from_secs(30);

const KEYS: &str = "keys";
const CLOCK: &str = "clock";
const PORTS: &str = "ports";
const PUBLIC_URL: &str = "public URL";
const GRPC: &str = "gRPC";

/// What is checked, and with which settings.
pub(super) struct Outside<'a> {
    pub(super) config: &'a Config,
    pub(super) public_url: Option<&'a str>,
    pub(super) client: client::Options,
    /// Trusted in addition to those of the system.
    pub(super) issuers: &'a [reqwest::Certificate],
    pub(super) is_running: bool,
    pub(super) head_at: Option<UnixMicros>,
}

impl Outside<'_> {
    /// Runs the checks in order.
    pub(super) async fn examine(self) -> Vec<Check> {
        let mut checks = Vec::new();
        let sources = &self.config.sources;
        for source in sources {
            let check = keys(source, self.issuers).await;
            let check = step_up::explain(check, source, self.issuers).await;
            checks.push(check.of_app(&source.id));
        }
        checks.push(clock(sources, self.head_at, self.issuers).await);
        checks.extend(ports(self.config, self.is_running));
        checks.push(match self.public_url {
            Some(url) => challenge_through(url, sources, self.issuers).await,
            None => Check::skipped(PUBLIC_URL, "none was given; try it with --url"),
        });
        checks.push(grpc(self.config, self.client, self.is_running).await);
        checks
    }
}

async fn keys(app: &EventSource, issuers: &[reqwest::Certificate]) -> Check {
    let source = app.keys.open();
    let fetched = match &source {
        // First with the issuers that `serve` trusts, which are those of the system.
        Ok(source) => signature::fetch(source, ANSWER_TIMEOUT).await,
        Err(error) => return Check::fault(KEYS, error.to_string(), "check its `jwks_url`"),
    };
    match fetched {
        Ok(set) => usable(&set, app.kind),
        Err(error) => {
            let trusting = match (&source, is_untrusted(&error)) {
                (Ok(source), true) if !issuers.is_empty() => {
                    let fetched = signature::fetch_trusting(source, ANSWER_TIMEOUT, issuers);
                    fetched.await.ok()
                }
                _ => None,
            };
            unfetched(app, &error, trusting.is_some())
        }
    }
}

fn is_untrusted(error: &signature::Error) -> bool {
    matches!(
        error,
        signature::Error::Fetch(FetchFault::Tls {
            trouble: Trouble::UnknownIssuer,
            ..
        })
    )
}

fn unfetched(app: &EventSource, error: &signature::Error, is_had_by_trusting: bool) -> Check {
    let trust = "let this system trust the issuer of that certificate, for instance with \
                 `update-ca-certificates`, or start `serve` with SSL_CERT_FILE naming a file of \
                 issuers that has it";
    let mut found = error.to_string();
    let remedy = match (error, &app.keys) {
        _ if is_had_by_trusting => {
            found.push_str(
                "; with --ca-file the set can be fetched, but `serve` trusts no such file",
            );
            trust.to_owned()
        }
        (signature::Error::Fetch(FetchFault::Tls { trouble, .. }), _) => match trouble.advice() {
            Some(advice) => advice,
            None if is_untrusted(error) => trust.to_owned(),
            None => "check that `jwks_url` names the right host; its operator has to replace the \
                     certificate, or this machine's clock is wrong"
                .to_owned(),
        },
        (_, KeySource::JwksUrl(_)) => {
            "check the app's id, `jwks_url` if it is set, and this machine's way there: DNS, \
             proxy, firewall"
                .to_owned()
        }
        (_, KeySource::JwksFile(_)) => "check the file: it has to be a JWKS".to_owned(),
        (_, KeySource::PemFiles(_)) => {
            "check the files: each has one or more public RSA keys in PEM (BEGIN PUBLIC KEY or BEGIN RSA \
             PUBLIC KEY), and nothing else"
                .to_owned()
        }
    };
    Check::fault(KEYS, found, remedy)
}

fn usable(set: &signature::KeySet, kind: SourceKind) -> Check {
    let mut skipped = String::new();
    for key in set.skipped() {
        // Writing to a string cannot fail.
        let _ = write!(skipped, "; not used: {key}");
    }
    if set.is_empty() {
        return Check::fault(
            KEYS,
            format!("there is no usable key{skipped}"),
            match kind {
                SourceKind::Auth => {
                    "check that this is the key set of the app's session tokens: it has RSA keys of 2048 \
                     bits or more"
                }
                SourceKind::Verify | SourceKind::Notify => {
                    "use the webhook signing key of Prelude's dashboard (Settings, Keys): it is an RSA key \
                     of 2048 bits or more"
                }
            },
        );
    }
    let sizes: Vec<String> = set
        .keys()
        .iter()
        .map(|key| key.bits().to_string())
        .collect();
    let found = format!(
        "{} usable, of {} bits{skipped}",
        sizes.len(),
        sizes.join(", ")
    );
    Check::good(KEYS, found)
}

/// Compares the clock with that of a key set's server, which every answer contains, and with the log.
async fn clock(
    sources: &[EventSource],
    head_at: Option<UnixMicros>,
    issuers: &[reqwest::Certificate],
) -> Check {
    let now = Timestamp::now();
    let remedy = "set the clock, and keep it right with NTP (`timedatectl set-ntp true`)";
    let newest = head_at.and_then(|at| Timestamp::from_microsecond(at.0).ok());
    if let Some(newest) = newest
        && newest.duration_since(now) > CLOCK_OFF_MAX
    {
        let found =
            format!("the log's newest event is of {newest}, but this machine's clock says {now}");
        return Check::fault(CLOCK, found, remedy);
    }
    let mut found = "there is no key server to compare it with";
    for source in sources {
        let KeySource::JwksUrl(url) = &source.keys else {
            continue;
        };
        match time_of(url, issuers).await {
            ServerTime::At(theirs) => return compared(theirs, remedy),
            ServerTime::NotSent => found = "no key server sends the time",
            ServerTime::Unreachable => {
                found = "it could not be compared: no key server answers";
            }
        }
    }
    Check::skipped(CLOCK, found)
}

fn compared(theirs: Timestamp, remedy: &str) -> Check {
    let off = Timestamp::now().duration_since(theirs);
    let found = format!(
        "it is {} s off from that of the key set's server",
        off.as_secs()
    );
    if off.abs() > CLOCK_OFF_MAX {
        return Check::fault(CLOCK, found, remedy);
    }
    Check::good(CLOCK, found)
}

/// The time by a server's clock.
enum ServerTime {
    At(Timestamp),
    /// The server answers without a date.
    NotSent,
    /// The server does not answer.
    Unreachable,
}

/// The `Date` of an answer, which has the format of an e-mail date (RFC 9110 section 5.6.7).
async fn time_of(url: &str, issuers: &[reqwest::Certificate]) -> ServerTime {
    let Ok(url) = reqwest::Url::parse(url) else {
        return ServerTime::Unreachable;
    };
    let Some(client) = http_client(&url, issuers) else {
        return ServerTime::Unreachable;
    };
    let Ok(response) = client.get(url).send().await else {
        return ServerTime::Unreachable;
    };
    let date = response.headers().get("date");
    let date = date.and_then(|date| rfc2822::parse(date.to_str().ok()?).ok());
    date.map_or(ServerTime::NotSent, |date| ServerTime::At(date.timestamp()))
}

pub(super) fn http_client(
    url: &reqwest::Url,
    issuers: &[reqwest::Certificate],
) -> Option<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("prelude-bridge/", env!("CARGO_PKG_VERSION")))
        .tls_certs_merge(issuers.iter().cloned());
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    builder.build().ok()
}

/// Checks each listener's port by binding it for a moment, which is the only reliable way.
fn ports(config: &Config, is_running: bool) -> Vec<Check> {
    let listeners = [
        ("webhook_listen", config.webhook_listen),
        ("grpc_listen", config.grpc_listen),
        ("admin_listen", config.admin_listen),
    ];
    let checks = listeners.map(|(key, address)| port(key, address, is_running));
    checks.into()
}

fn port(key: &str, address: SocketAddr, is_running: bool) -> Check {
    if address.port() == 0 {
        let found = format!("`{key}` takes any free port when `serve` starts");
        return Check::good(PORTS, found);
    }
    match TcpListener::bind(address) {
        Ok(_) if is_running => Check::fault(
            PORTS,
            format!("a bridge runs, but not with `{key}` at {address}"),
            "give doctor the flags and the environment that the bridge was started with",
        ),
        Ok(_) => Check::good(PORTS, format!("`{key}`: {address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if is_running {
                let found = format!("`{key}`: the running bridge has {address}");
                return Check::good(PORTS, found);
            }
            Check::fault(
                PORTS,
                format!("`{key}`: another program has {address}"),
                format!("stop it, or choose another port with `{key}`"),
            )
        }
        Err(error) => Check::fault(
            PORTS,
            format!("`{key}`: {address} cannot be listened on: {error}"),
            format!("choose an address of this machine, and a port above 1023, with `{key}`"),
        ),
    }
}

/// Sends the activation challenge through the public URL: this checks name, proxy, path, app and token.
async fn challenge_through(
    url: &str,
    sources: &[EventSource],
    issuers: &[reqwest::Certificate],
) -> Check {
    let last = url
        .split('?')
        .next()
        .and_then(|path| path.rsplit('/').next());
    let named = sources
        .iter()
        .find(|source| Some(source.id.as_str()) == last);
    if let Some(source) = named.filter(|source| source.kind != SourceKind::Auth) {
        let found = format!(
            "a source of kind {} has no activation challenge to try it with",
            source.kind.name()
        );
        return Check::skipped(PUBLIC_URL, found).of_app(&source.id);
    }
    let mut apps = sources
        .iter()
        .filter_map(|source| Some((source, source.activation.as_ref()?)));
    let first = apps.clone().next();
    let named = apps.find(|(app, _)| Some(app.id.as_str()) == last);
    let Some((app, activation)) = named.or(first) else {
        return Check::skipped(PUBLIC_URL, "there is no app to send a challenge for");
    };
    let url = url.replace("{app}", &app.id);
    let token = activation.token.expose();
    let mut finding = challenge::send(&url, &app.id, token).await;
    let mut note = "";
    if finding == Finding::Tls(Trouble::UnknownIssuer) && !issuers.is_empty() {
        finding = challenge::send_trusting(&url, &app.id, token, issuers).await;
        note = ", with the issuers of --ca-file, which Prelude does not know";
    }
    let check = match &finding {
        Finding::Met => Check::good(
            PUBLIC_URL,
            format!("the challenge is answered through it{note}"),
        ),
        Finding::SourceRefused => Check::fault(
            PUBLIC_URL,
            finding.to_string(),
            "for this check, add this machine's address to `allowed_sources`; behind a proxy, set \
             `trusted_proxies`",
        ),
        Finding::Tls(Trouble::UnknownIssuer) => {
            let mut check = Check::fault(PUBLIC_URL, finding.to_string(), finding.remedy());
            check.remedies.push(
                "to check what comes after TLS, give doctor the issuers with --ca-file".to_owned(),
            );
            check
        }
        _ => Check::fault(PUBLIC_URL, finding.to_string(), finding.remedy()),
    };
    check.of_app(&app.id)
}

async fn grpc(config: &Config, client: client::Options, is_running: bool) -> Check {
    let listen = config.grpc_listen;
    if !is_running {
        return Check::skipped(GRPC, "no bridge is running");
    }
    if listen.port() == 0 {
        let found = "the port was chosen when the bridge started; the `ready` line has it";
        return Check::skipped(GRPC, found);
    }
    let scheme = match &config.tls.grpc {
        Some(_) => "https",
        None => "http",
    };
    let url = format!("{scheme}://{}", reachable(listen));
    // The certificates may be meant for the public URL only.
    let client = match &config.tls.grpc {
        Some(_) => client,
        None => client.without_certificates(),
    };
    let mut options = client.with_url(&url).connect_timeout(ANSWER_TIMEOUT);
    // This calls the port by its address, but its certificate has a name.
    if let Some(name) = super::tls::name_of_grpc(&config.tls) {
        options = options.server_name(name);
    }
    let range = match client::Client::connect(&options).await {
        Ok(client) => client.range().await,
        Err(error) => Err(error),
    };
    match range {
        Ok(range) => {
            let head = range.head.map_or(0, |head| head.sequence);
            Check::good(
                GRPC,
                format!("{url} answers; the log's newest event is {head}"),
            )
        }
        Err(error @ client::Error::Refused { .. }) => Check::fault(
            GRPC,
            error.to_string(),
            "give doctor a credential that the bridge knows, with --token-file or \
             --client-certificate-file",
        ),
        Err(error @ client::Error::Unreachable(_)) if config.tls.grpc.is_some() => Check::fault(
            GRPC,
            format!("{url}: {error}"),
            "if it is about the certificate, give doctor its issuers with --ca-file; else check \
             that the bridge was started with this configuration",
        ),
        Err(error) => Check::fault(
            GRPC,
            format!("{url}: {error}"),
            "check that the bridge was started with this `grpc_listen`; its log says more",
        ),
    }
}

/// Whether a bridge's admin port answers at this address.
pub(super) async fn answers(listen: SocketAddr) -> bool {
    let url = format!("http://{}/healthz", reachable(listen));
    let Ok(url) = reqwest::Url::parse(&url) else {
        return false;
    };
    let Some(client) = http_client(&url, &[]) else {
        return false;
    };
    match client.get(url).send().await {
        Ok(response) => {
            let answer = response.json::<serde_json::Value>().await;
            answer.is_ok_and(|answer| answer.get("status").is_some_and(|status| status == "up"))
        }
        Err(_) => false,
    }
}

/// The address at which this machine reaches a listener.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
