//! What is pasted where it does not belong: a person's number or address, a token, an escape sequence,
//! in each setting, flag and file of the configuration. None of it may come out on stderr, which is
//! what becomes a log: neither in the words of a refusal nor while a bridge runs with it. What is
//! mistyped, on the other hand, has to be readable there.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Output,
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::{
    cli::{program, run, stderr, stdout},
    support::{Bridge, EMAIL, KEY, PHONE, SOON, Setup, TOKEN, certificates::Authority, jwks},
};

/// A token that this bridge could have made.
const BEARER: &str = "pb_wJ8Zk2yqQf3bT0vNn1xR7LhUeC4aSdGmPiOkYtXrE01";
const ESCAPES: &str = "\u{1b}[31m\u{9b}31m\u{202e}\u{2066}\u{7f}";

/// The keys of an app, and one that some would like there to be.
const APP_KEYS: [&str; 7] = [
    "id",
    "verification_token_file",
    "verification_token_env",
    "verification_token",
    "jwks_url",
    "jwks_file",
    "pem_file",
];

/// What is pasted.
fn canaries() -> [String; 5] {
    [
        PHONE.to_owned(),
        EMAIL.to_owned(),
        BEARER.to_owned(),
        format!("{ESCAPES}{PHONE}"),
        format!("{ESCAPES}{BEARER}"),
    ]
}

#[track_caller]
fn assert_clean(where_from: &str, text: &str) {
    for canary in [&PHONE[1..], EMAIL, &BEARER[3..], TOKEN] {
        assert!(
            !text.contains(canary),
            "{where_from}: {canary:?} in {text:?}"
        );
    }
    let steers = |c: char| (c.is_control() && c != '\n') || ESCAPES.contains(c) && !c.is_ascii();
    assert!(!text.contains(steers), "{where_from}: {text:?}");
    assert!(!text.contains("panicked"), "{where_from}: {text}");
}

/// Every key that there is, outside of apps.
fn keys() -> Vec<String> {
    let shown = run(&["config", "show", "--output", "json"]);
    let shown: Value = serde_json::from_str(&stdout(&shown)).unwrap();
    let settings = shown["settings"].as_array().unwrap();
    let keys = settings
        .iter()
        .map(|setting| setting["key"].as_str().unwrap());
    keys.map(str::to_owned).collect()
}

fn variable(key: &str) -> String {
    let key = if key == "store.url" { "store" } else { key };
    format!("PRELUDE_BRIDGE_{}", key.to_uppercase().replace('.', "_"))
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| format!("\\U{:08X}", u32::from(c)))
        .collect();
    format!("\"{escaped}\"")
}

fn file(directory: &TempDir, content: &str) -> String {
    let path = directory.path().join("bridge.toml");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn assert_refused(where_from: &str, output: &Output) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{where_from}: {said}");
    assert!(said.contains("error:"), "{where_from}: {said}");
    assert_clean(where_from, &said);
    assert_clean(where_from, &stdout(output));
}

#[test]
fn what_is_pasted_into_every_setting_at_once_is_refused_and_not_repeated() {
    let directory = tempdir().unwrap();
    for canary in canaries() {
        let mut serve = program(&["serve", "--log-level", "trace"]);
        serve.current_dir(&directory);
        for key in keys() {
            serve.env(variable(&key), &canary);
        }
        serve.env("PRELUDE_BRIDGE_APP_ID", &canary);
        serve.env("PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE", &canary);
        serve.env("PRELUDE_BRIDGE_JWKS_URL", &canary);
        assert_refused("environment", &serve.output().unwrap());
        serve.env_remove("PRELUDE_BRIDGE_APP_ID");
        for name in ["SOURCE_ID", "SOURCE_KIND", "PEM_FILE"] {
            serve.env(format!("PRELUDE_BRIDGE_{name}"), &canary);
        }
        assert_refused("environment", &serve.output().unwrap());

        let value = quoted(&canary);
        let settings: String = keys()
            .iter()
            .map(|key| format!("{key} = {value}\n"))
            .collect();
        let app = |key: &str| match key {
            "id" => format!("[[apps]]\nid = {value}\n"),
            key => format!("[[apps]]\nid = \"54e9ujn\"\n{key} = {value}\n"),
        };
        let source = |key: &str| match key {
            "id" => format!("[[sources]]\nkind = \"verify\"\nid = {value}\n"),
            "kind" => format!("[[sources]]\nid = \"calls\"\nkind = {value}\n"),
            "pem_files" => format!(
                "[[sources]]\nid = \"calls\"\nkind = \"verify\"\npem_files = [{value}, {value}]\n\
                 [[sources]]\nid = \"texts\"\nkind = \"notify\"\npem_files = [{value}]\n"
            ),
            key => format!("[[sources]]\nid = \"calls\"\nkind = \"verify\"\n{key} = {value}\n"),
        };
        let sources = APP_KEYS
            .into_iter()
            .chain(["kind", "pem_files"])
            .map(source);
        let apps = APP_KEYS.map(app).into_iter().chain(sources);
        let apps: String = apps.collect();
        for content in [
            format!("{settings}{apps}"),
            // Keys and sections that there are none of, and what is no TOML.
            format!("{value} = 1\n[{value}]\n{value} = {value}\n[[apps]]\n{value} = {value}\n"),
            format!("drain_timeout = {canary}\n"),
            format!("apps = [{value}]\nsources = [{value}]\n"),
        ] {
            let path = file(&directory, &content);
            assert_refused("file", &run(&["config", "check", &path]));
            assert_refused("file", &run(&["serve", "--config", &path]));
            let doctor = run(&["doctor", "--config", &path]);
            assert_clean("doctor", &stderr(&doctor));
            assert_clean("doctor", &stdout(&doctor));
        }
    }
}

#[test]
fn what_is_pasted_into_a_flag_is_refused_and_not_repeated() {
    let flags = [
        "--config",
        "--webhook-listen",
        "--grpc-listen",
        "--admin-listen",
        "--store",
        "--drain-timeout",
        "--log-format",
        "--log-level",
    ];
    for canary in canaries() {
        for flag in flags {
            assert_refused(flag, &run(&["serve", flag, &canary]));
            let joined = format!("{flag}={canary}");
            assert_refused(flag, &run(&["serve", &joined]));
        }
        for arguments in [
            &["serve", &canary][..],
            &["serve", &format!("--{canary}")],
            &["serve", &format!("--token={canary}")],
            &["serve", "--allow-anonymous", &canary],
            &[&canary],
            &["config", "check", &canary],
            &["config", "show", "--output", &canary],
            &["webhook", "list", "--api-token-file", &canary],
            &["tail", "--output", &canary],
            &["tail", "--since", &canary],
        ] {
            assert_refused(&format!("{arguments:?}"), &run(arguments));
        }
        let tail = [
            "tail",
            "--server",
            "http://127.0.0.1:1",
            "--token-file",
            &canary,
        ];
        assert_clean("tail", &stderr(&run(&tail)));
    }
}

/// Values that are wrong without looking it: each is where a secret was meant to be named.
#[test]
fn a_short_secret_where_its_file_belongs_is_not_repeated() {
    let directory = tempdir().unwrap();
    for key in [
        "verification_token_file",
        "verification_token_env",
        "verification_token",
    ] {
        let path = file(
            &directory,
            &format!("[[apps]]\nid = \"54e9ujn\"\n{key} = \"{TOKEN}\"\n"),
        );
        assert_refused(key, &run(&["config", "check", &path]));
    }
    let mut serve = program(&["serve"]);
    serve.env("PRELUDE_BRIDGE_APP_ID", "54e9ujn");
    serve.env("PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE", TOKEN);
    assert_refused("environment", &serve.output().unwrap());
    assert_refused(
        "flag",
        &run(&["webhook", "list", "--api-token-file", TOKEN]),
    );
    let tail = [
        "tail",
        "--server",
        "http://127.0.0.1:1",
        "--token-file",
        TOKEN,
    ];
    assert_clean("tail", &stderr(&run(&tail)));
}

/// A bridge whose settings are all that they may be, and full of what nobody should read.
async fn started(log_format: &str, directory: &Path) -> Bridge {
    let within = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let credentials = format!(
        "[[credentials]]\nname = \"{EMAIL}\"\nsha256 = \"{}\"\ntypes = [\"{PHONE}\"]\n",
        "0".repeat(64)
    );
    fs::write(within("credentials.toml"), credentials).unwrap();
    fs::write(within("jwks.json"), jwks(&KEY)).unwrap();
    let authority = Authority::new();
    let issued = authority.server("server");
    fs::copy(issued.certificate, within("server.crt")).unwrap();
    fs::copy(issued.key, within("server.key")).unwrap();
    let setup = Setup::default()
        .with("log_level", "trace")
        .with("tls.grpc.certificate_file", &within("server.crt"))
        .with("tls.grpc.key_file", &within("server.key"))
        .with("log_format", log_format)
        .with("web_origins", &format!("https://{BEARER}.example.com"))
        .with("credentials_file", &within("credentials.toml"))
        .with("jwt.jwks_file", &within("jwks.json"))
        .with("jwt.issuer", EMAIL)
        .with("jwt.audience", PHONE)
        .with("jwt.types_claim", BEARER)
        .with("jwt.apps_claim", EMAIL)
        // Nobody listens there, so it is spoken of.
        .jwks_url(&format!(
            "http://127.0.0.1:1/{PHONE}/jwks.json?key={BEARER}"
        ));
    setup.start_listening().await
}

/// Waits until the log has this in it.
async fn hears(bridge: &Bridge, said: &str) {
    let heard = async {
        while !bridge.stderr().contains(said) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let heard = tokio::time::timeout(SOON, heard).await;
    assert!(heard.is_ok(), "no {said:?} in {}", bridge.stderr());
}

/// Paths, URLs, ids and flags of every form that is nobody's secret.
#[test]
fn what_is_mistyped_is_repeated_as_it_was_typed() {
    let home = tempdir().unwrap();
    let directory = home.path().join("20261130-0012025550142/54e9ujn1234567");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("bridge.toml");
    let content = "drain_timeout = \"4915112345678 parsecs\"\n[[apps]]\nid = \"54e9ujn\"\n\
         verification_token_env = \"PATH\"\n\
         jwks_file = \"keys/550e8400-e29b-41d4-a716-446655440aaa.json\"\n";
    fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap();
    let key_file = directory.join("keys/550e8400-e29b-41d4-a716-446655440aaa.json");
    for (arguments, repeated) in [
        (&["config", "check", path][..], &format!("{path}:1: ")[..]),
        (&["config", "check", path], "4915112345678 parsecs"),
        (&["config", "check", path], key_file.to_str().unwrap()),
        (
            &["serve", "--webhook-listen", "bridge:8080"],
            "`bridge:8080`",
        ),
        (&["tail", "--since", "tomorrow"], "tomorrow"),
        (&["tail", "--since", "2026-13-20 08:30"], "2026-13-20 08:30"),
        (
            &["bench", "ingest", "--runs", "4915112345678"],
            "4915112345678",
        ),
        (&["4915112345678"], "4915112345678"),
    ] {
        let output = program(arguments).env("PATH", "x").output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(repeated), "{arguments:?}: {repeated}: {said}");
        assert!(!said.contains("(withheld)"), "{arguments:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_key_url_is_in_the_log_without_the_secrets_in_it() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    // Ends with the process of the test.
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    });
    for log_format in ["text", "json"] {
        let url = format!("http://{address}/apps/54e9ujn1234567890/jwks.json");
        let setup = Setup::default().with("log_format", log_format);
        let typed = format!("{url}?key=hunter2");
        let mut bridge = setup.jwks_url(&typed).start_listening().await;
        hears(&bridge, "could not be read").await;
        assert!(bridge.terminate().await.success());
        let log = bridge.stderr();
        let answered = format!("{url}?key=(withheld) answered with status 404");
        assert!(log.contains(&answered), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
        assert!(!log.contains("last good ones"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_runs_with_it_says_nothing_of_it() {
    for log_format in ["text", "json"] {
        let outer = tempdir().unwrap();
        let directory = outer.path().join(format!("{PHONE} {EMAIL} {BEARER}"));
        fs::create_dir(&directory).unwrap();
        let mut bridge = started(log_format, &directory).await;
        let unknown = format!("[[credentials]]\nname = 7\n\"{EMAIL}\" = \"{BEARER}\"\n");
        for (content, said) in [
            (format!("{EMAIL} = \"{PHONE}\"\n[[{BEARER}]]\n"), "TOML"),
            (unknown, "unknown key"),
            (String::new(), "revoked"),
        ] {
            fs::write(directory.join("credentials.toml"), content).unwrap();
            hears(&bridge, said).await;
        }
        fs::write(directory.join("server.key"), format!("{EMAIL}{BEARER}")).unwrap();
        hears(&bridge, "the TLS files changed").await;
        for page in ["/metrics", "/readyz"] {
            assert_clean(page, &bridge.admin(page).await.text());
        }
        assert!(bridge.terminate().await.success());
        let log = bridge.stderr();
        for heard in ["could not be read", "are not taken over", "(withheld)"] {
            assert!(log.contains(heard), "no {heard:?} in {log}");
        }
        assert_clean("log", &log);
    }
}
