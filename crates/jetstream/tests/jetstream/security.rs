//! Logins, permissions and TLS.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use prelude_bridge_jetstream::{
    Login, OpenError, Options, Tls, open,
    testing::{Config, Nats, SOON},
};
use prelude_bridge_log::sequencer::{Position, Secret, Sequencer as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{commit, contains, options, refused, settle};

async fn server(text: &str) -> Nats {
    Nats::start(
        1,
        Config {
            server: text.to_owned(),
            ..Config::default()
        },
    )
    .await
}

fn as_who(nats: &Nats, login: Login) -> Options {
    Options {
        login,
        ..options(nats, 1)
    }
}

fn password(password: &str) -> Login {
    Login::Password {
        user: "bridge".to_owned(),
        password: Secret::new(password),
    }
}

#[tokio::test]
#[ignore = "needs tools"]
async fn passwords_tokens_and_keys_are_logins() {
    let nats = server("authorization { users: [{ user: bridge, password: canary }] }").await;
    open(as_who(&nats, password("canary"))).await.unwrap();
    for login in [
        Login::None,
        password("canary-wrong"),
        Login::Token(Secret::new("canary-other")),
    ] {
        let error = refused(as_who(&nats, login)).await;
        assert!(matches!(error, OpenError::Login { .. }), "{error}");
        assert!(!error.to_string().contains("canary") && !format!("{error:?}").contains("canary"));
    }
    let nats = server("authorization { token: canary }").await;
    open(as_who(&nats, Login::Token(Secret::new("canary"))))
        .await
        .unwrap();
    let error = refused(as_who(&nats, Login::Token(Secret::new("canary-wrong")))).await;
    assert!(matches!(error, OpenError::Login { .. }), "{error}");
    // A user of NKeys: the pair of the documentation of nats-server.
    let (public, seed) = (
        "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
        "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    );
    let nats = server(&format!(
        "authorization {{ users: [{{ nkey: {public} }}] }}"
    ))
    .await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("bridge.nk");
    fs::write(&file, format!("# the bridge\n{seed}\n")).unwrap();
    let opened = open(as_who(&nats, Login::CredentialsFile(file.clone())))
        .await
        .unwrap();
    assert!(settle(&opened.sequencer, 1, &commit(1)).await);
    fs::write(&file, "nothing").unwrap();
    let error = refused(as_who(&nats, Login::CredentialsFile(file.clone()))).await;
    assert!(matches!(error, OpenError::File { .. }), "{error}");
    contains(error, &["bridge.nk", ".creds"]);
    fs::remove_file(&file).unwrap();
    contains(
        refused(as_who(&nats, Login::CredentialsFile(file))).await,
        &["bridge.nk", "cannot be read"],
    );
}

/// The accounts of an operator: what it, the account and the user sign, as `nsc` makes it.
fn operator() -> (String, String) {
    let operator = nkeys::KeyPair::new_operator();
    let (account, user) = (nkeys::KeyPair::new_account(), nkeys::KeyPair::new_user());
    // JetStream has its API in it.
    let system = nkeys::KeyPair::new_account();
    let sign = |issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, nats: serde_json::Value| {
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
        let claims = part(json!({
            "jti": "x", "iat": 1_700_000_000, "name": "test", "nats": nats,
            "iss": issuer.public_key(), "sub": subject.public_key(),
        }));
        let text = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(issuer.sign(text.as_bytes()).unwrap());
        format!("{text}.{signature}")
    };
    let of_operator = sign(
        &operator,
        &operator,
        json!({ "type": "operator", "version": 2 }),
    );
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1, "disk_storage": 2_u64 << 30, "streams": -1, "consumer": -1,
    });
    let of_account = sign(
        &operator,
        &account,
        json!({ "type": "account", "version": 2, "limits": limits }),
    );
    let of_system = sign(
        &operator,
        &system,
        json!({ "type": "account", "version": 2, "limits": { "subs": -1, "conn": -1, "data": -1, "payload": -1 } }),
    );
    let unlimited = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let of_user = sign(&account, &user, unlimited);
    let seed = user.seed().unwrap();
    let server = format!(
        "operator: {of_operator}\nsystem_account: {}\nresolver: MEMORY\n\
         resolver_preload: {{ {}: {of_account}, {}: {of_system} }}",
        system.public_key(),
        account.public_key(),
        system.public_key()
    );
    let credentials = format!(
        "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    (server, credentials)
}

#[tokio::test]
#[ignore = "needs tools"]
async fn a_credentials_file_is_a_login() {
    let ((text, credentials), (_, others)) = (operator(), operator());
    let nats = server(&text).await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("bridge.creds");
    fs::write(&file, credentials).unwrap();
    let opened = open(as_who(&nats, Login::CredentialsFile(file.clone())))
        .await
        .unwrap();
    assert!(settle(&opened.sequencer, 1, &commit(1)).await);
    // It is needed at each connection.
    nats.kill(0);
    nats.restart(0);
    assert!(settle(&opened.sequencer, 2, &commit(2)).await);
    fs::write(&file, &others).unwrap();
    let error = refused(as_who(&nats, Login::CredentialsFile(file))).await;
    assert!(matches!(error, OpenError::Login { .. }), "{error}");
}

/// What the crate's documentation lists.
const PUBLISH: [&str; 10] = [
    "prelude-bridge.prelude-bridge.commits",
    "prelude-bridge.prelude-bridge.peer.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.CREATE.prelude-bridge",
    "$JS.API.STREAM.INFO.prelude-bridge",
    "$JS.API.STREAM.MSG.GET.prelude-bridge",
    "$JS.API.CONSUMER.CREATE.prelude-bridge.>",
    "$JS.API.CONSUMER.MSG.NEXT.prelude-bridge.>",
    "$JS.API.CONSUMER.DELETE.prelude-bridge.>",
    "_INBOX.>",
];

async fn permitted(publish: &[&str], subscribe: &[&str]) -> Nats {
    let list = |subjects: &[&str]| format!("[\"{}\"]", subjects.join("\", \""));
    server(&format!(
        "authorization {{ users: [{{ user: bridge, password: canary, permissions: {{ publish: {}, subscribe: {} }} }}] }}",
        list(publish),
        list(subscribe)
    ))
    .await
}

#[tokio::test]
#[ignore = "needs tools"]
async fn the_documented_permissions_are_enough_and_needed() {
    let subscribe = ["_INBOX.>", "prelude-bridge.prelude-bridge.peer.>"];
    let nats = permitted(&PUBLISH, &subscribe).await;
    let opened = open(as_who(&nats, password("canary"))).await.unwrap();
    assert_eq!(opened.warnings.len(), 1, "{:?}", opened.warnings);
    assert!(settle(&opened.sequencer, 1, &commit(1)).await);
    for missing in PUBLISH
        .iter()
        .filter(|subject| !subject.ends_with("peer.>") && !subject.starts_with("_INBOX"))
    {
        // It is not needed to be served, only to leave nothing behind.
        if missing.contains("CONSUMER.DELETE") {
            continue;
        }
        let rest: Vec<&str> = PUBLISH
            .iter()
            .filter(|subject| subject != &missing)
            .copied()
            .collect();
        let nats = permitted(&rest, &subscribe).await;
        let error = refused(as_who(&nats, password("canary"))).await;
        assert!(
            matches!(error, OpenError::Permission(_)),
            "{missing}: {error}"
        );
        contains(error, &[missing.trim_end_matches('>')]);
    }
    let nats = permitted(&PUBLISH, &subscribe[..1]).await;
    let opened = open(as_who(&nats, password("canary"))).await.unwrap();
    contains(
        opened.warnings.join("\n"),
        &[
            "cannot ask each other",
            "prelude-bridge.prelude-bridge.peer.>",
        ],
    );
}

struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// An authority, and a server and a client that it signed.
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let signed = CertificateParams::new(names)
                .unwrap()
                .signed_by(&key, &authority)
                .unwrap();
            fs::write(directory.path().join(format!("{name}.pem")), signed.pem()).unwrap();
            fs::write(
                directory.path().join(format!("{name}.key")),
                key.serialize_pem(),
            )
            .unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn server(&self, verify: bool) -> String {
        let show = |path: &Path| format!("\"{}\"", path.display());
        format!(
            "tls {{ cert_file: {}, key_file: {}, ca_file: {}, verify: {verify} }}",
            show(&self.path("server.pem")),
            show(&self.path("server.key")),
            show(&self.path("ca.pem"))
        )
    }
}

#[tokio::test]
#[ignore = "needs tools"]
async fn no_call_hangs_on_a_stopped_server_with_tls() {
    let ours = Certificates::new();
    let nats = server(&ours.server(false)).await;
    let tls = Tls {
        authority: Some(ours.path("ca.pem")),
        certificate: None,
    };
    let with_tls = Options {
        tls: Some(tls),
        ..options(&nats, 1)
    };
    let sequencer = open(with_tls).await.unwrap().sequencer;
    settle(&sequencer, 1, &commit(1)).await;
    nats.pause(0);
    // More than the sockets hold, so that the end of TLS cannot be sent.
    let large = Bytes::from(vec![7; 3 << 20]);
    for _ in 0..5 {
        let begin = Instant::now();
        assert!(sequencer.append(Position(2), large.clone()).await.is_err());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    nats.resume(0);
    assert!(settle(&sequencer, 2, &large).await);
}

#[tokio::test]
#[ignore = "needs tools"]
async fn tls_proves_both_ends() {
    let ours = Certificates::new();
    let with =
        |nats: &Nats, authority: &Certificates, certificate: Option<&Certificates>| Options {
            tls: Some(Tls {
                authority: Some(authority.path("ca.pem")),
                certificate: certificate.map(|of| (of.path("client.pem"), of.path("client.key"))),
            }),
            ..options(nats, 1)
        };
    let nats = server(&ours.server(false)).await;
    let opened = open(with(&nats, &ours, None)).await.unwrap();
    assert!(settle(&opened.sequencer, 1, &commit(1)).await);
    let mut by_scheme = with(&nats, &ours, None);
    by_scheme.servers = nats
        .urls()
        .iter()
        .map(|url| url.replace("nats://", "tls://"))
        .collect();
    open(by_scheme).await.unwrap();
    let others = Certificates::new();
    let error = refused(with(&nats, &others, None)).await;
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
    let mutual = server(&ours.server(true)).await;
    open(with(&mutual, &ours, Some(&ours))).await.unwrap();
    let error = refused(with(&mutual, &ours, None)).await;
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
    // A server without TLS gets no login.
    let plain = server("").await;
    let error = refused(with(&plain, &ours, None)).await;
    assert!(matches!(error, OpenError::Connect { .. }), "{error}");
    fs::write(others.path("ca.pem"), "nothing").unwrap();
    let error = refused(with(&nats, &others, None)).await;
    assert!(matches!(error, OpenError::File { .. }), "{error}");
    contains(error, &["ca.pem"]);
    fs::write(others.path("client.key"), "nothing").unwrap();
    let error = refused(with(&nats, &ours, Some(&others))).await;
    contains(error, &["client.key", "private key"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_token_and_a_password_that_are_changed_are_read_again_at_the_next_connection() {
    let directory = TempDir::new().unwrap();
    let included = directory.path().join("login.conf");
    let name = directory.path().file_name().unwrap().to_str().unwrap();
    let secret = Arc::new(Mutex::new("canary-1".to_owned()));
    let read = {
        let secret = Arc::clone(&secret);
        Secret::read_by(move || Ok(secret.lock().unwrap().clone()))
    };
    let of_user = Login::Password {
        user: "bridge".to_owned(),
        password: read.clone(),
    };
    for (login, before, after) in [
        (Login::Token(read), "token: canary-1", "token: canary-2"),
        (
            of_user,
            "user: bridge, password: canary-1",
            "user: bridge, password: canary-2",
        ),
    ] {
        *secret.lock().unwrap() = "canary-1".to_owned();
        fs::write(&included, format!("authorization {{ {before} }}\n")).unwrap();
        let nats = server(&format!("include \"../{name}/login.conf\"")).await;
        let sequencer = open(as_who(&nats, login)).await.unwrap().sequencer;
        settle(&sequencer, 1, &commit(1)).await;
        let mut connections = sequencer.connections();
        let connected = *connections.borrow();
        *secret.lock().unwrap() = "canary-2".to_owned();
        fs::write(&included, format!("authorization {{ {after} }}\n")).unwrap();
        nats.reload(0);
        let again = connections.wait_for(|count| *count >= connected + 2);
        tokio::time::timeout(SOON, again).await.unwrap().unwrap();
        settle(&sequencer, 2, &commit(2)).await;
    }
}
