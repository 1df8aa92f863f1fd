//! The configuration from outside: what `serve` refuses, what `config show` and `config check`
//! say, and which source wins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::{TempDir, tempdir};

use crate::{
    cli::{program, run, stderr, stdout},
    support::{Bridge, KEY, certificates::Authority, jwks},
};

const GOOD: &str = "[[apps]]\nid = \"54e9ujn\"\nverification_token_file = \"token.txt\"\n";
const TOKEN: &str = "tok-secret-1";

/// A configuration file beside a token file.
fn file(content: &str) -> (TempDir, PathBuf) {
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("token.txt"), TOKEN).unwrap();
    let path = directory.path().join("bridge.toml");
    fs::write(&path, content).unwrap();
    (directory, path)
}

#[test]
fn serve_refuses_a_bad_file_and_names_file_line_key_and_remedy() {
    let (_directory, path) = file("\ndata_dri = \"x\"\ndrain_timeout = 15\n");
    let name = path.to_str().unwrap();
    let output = run(&["serve", "--config", name]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        format!(
            "error: {name}:2: unknown key `data_dri`\n  \
             help: did you mean `data_dir`? prelude-bridge.example.toml explains every key\n\
             error: {name}:3: `drain_timeout`: the value is a number, not a string\n  \
             help: write a number with its unit, such as \"500ms\", \"15s\", \"10m\", \"2h\" or \"30d\"\n"
        )
    );
}

#[test]
fn serve_without_an_app_says_how_to_set_one() {
    let output = run(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.starts_with("error: no app is configured"), "{text}");
    for way in [
        "PRELUDE_BRIDGE_APP_ID",
        "PRELUDE_BRIDGE_VERIFICATION_TOKEN",
        "[[apps]]",
        "--config",
    ] {
        assert!(text.contains(way), "{text}");
    }
}

#[test]
fn a_password_in_the_url_of_the_store_is_refused_on_the_command_line_and_not_repeated() {
    let output = run(&["serve", "--store", "nats://me:hunter2@nats:4222"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("flag --store: `store`: there is a password in it"),
        "{text}"
    );
    assert!(text.contains("PRELUDE_BRIDGE_STORE_PASSWORD"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn show_prints_the_store_of_the_environment_without_its_password() {
    for output in ["toml", "json"] {
        let output = program(&["config", "show", "--output", output])
            .env("PRELUDE_BRIDGE_STORE", "nats://me:hunter2@a,b:4223")
            .env("PRELUDE_BRIDGE_STORE_REPLICAS", "5")
            .output()
            .unwrap();
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        for part in [
            "nats://a:4222,b:4223",
            "environment PRELUDE_BRIDGE_STORE",
            "\"me\"",
            "replicas",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let all = format!("{text}{}", stderr(&output));
        assert!(!all.contains("hunter2"), "{all}");
        assert!(stderr(&output).contains("in plain text"), "{all}");
    }
}

#[test]
fn check_and_serve_name_each_file_of_the_store_that_is_missing() {
    let store = "url = \"nats://a\"\ncredentials_file = \"no.creds\"\ntls_ca_file = \"no.pem\"";
    let (directory, path) = file(&format!("[store]\n{store}\n{GOOD}"));
    let path = path.to_str().unwrap();
    let checked = run(&["config", "check", path]);
    assert_eq!(checked.status.code(), Some(2));
    for name in ["no.creds", "no.pem"] {
        let named = format!("/{name} for the store cannot be read");
        assert!(stderr(&checked).contains(&named), "{}", stderr(&checked));
    }
    let listen = ["webhook", "grpc", "admin"].map(|port| format!("--{port}-listen=127.0.0.1:0"));
    let served = program(&["serve", "--config", path])
        .args(listen)
        .current_dir(&directory)
        .output()
        .unwrap();
    assert_eq!(served.status.code(), Some(2), "{}", stderr(&served));
    assert!(stderr(&served).contains("/no.creds for the store cannot be read"));
}

#[test]
fn check_names_what_does_not_fit_the_store_with_line_and_remedy() {
    let (_directory, path) = file(&format!(
        "[store]\nurl = \"nats://a\"\ntable = \"x\"\n{GOOD}"
    ));
    let checked = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(2));
    let text = stderr(&checked);
    assert!(
        text.contains(":3: `store.table`: the store is NATS JetStream"),
        "{text}"
    );
    assert!(text.contains("help: remove it;"), "{text}");
}

#[test]
fn show_prints_each_value_with_its_origin() {
    let (_directory, path) = file(&format!("grpc_listen = \"127.0.0.1:2\"\n{GOOD}"));
    let name = path.to_str().unwrap();
    let output = program(&["config", "show", "--log-level", "debug"])
        .env("PRELUDE_BRIDGE_CONFIG", name)
        .env("PRELUDE_BRIDGE_WEBHOOK_LISTEN", "127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let line = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        line("webhook_listen"),
        "webhook_listen = \"127.0.0.1:1\" # environment PRELUDE_BRIDGE_WEBHOOK_LISTEN"
    );
    assert_eq!(
        line("grpc_listen"),
        format!("grpc_listen = \"127.0.0.1:2\" # {name}:1")
    );
    assert_eq!(
        line("log_level"),
        "log_level = \"debug\" # flag --log-level"
    );
    assert_eq!(line("[store]"), "[store]");
    assert_eq!(line("url ="), "url = \"embedded\" # default");
    assert_eq!(line("id ="), format!("id = \"54e9ujn\" # {name}:2"));
    assert!(!text.contains(TOKEN), "{text}");
}

#[test]
fn a_flag_wins_over_its_variable() {
    let output = program(&["config", "show", "--output", "json", "--store", "memory"])
        .env("PRELUDE_BRIDGE_STORE", "embedded")
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let settings = shown
        .get("settings")
        .and_then(|all| all.as_array())
        .unwrap();
    let expected =
        serde_json::json!({"key": "store.url", "value": "memory", "origin": "flag --store"});
    assert!(settings.contains(&expected), "{shown:#}");
}

#[test]
fn what_show_prints_is_a_file_that_check_finds_good() {
    let (directory, path) = file(GOOD);
    let shown = run(&["config", "show", "--config", path.to_str().unwrap()]);
    let copy = directory.path().join("copy.toml");
    fs::write(&copy, shown.stdout).unwrap();
    let checked = run(&["config", "check", copy.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
    assert_eq!(
        stdout(&checked),
        format!("{} is good; apps: 54e9ujn\n", copy.display())
    );
}

#[test]
fn show_needs_no_app_and_never_prints_a_token() {
    let output = run(&["config", "show"]);
    assert_eq!(output.status.code(), Some(0));
    for form in ["toml", "json"] {
        let output = program(&["config", "show", "--output", form])
            .env("PRELUDE_BRIDGE_APP_ID", "54e9ujn")
            .env("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN)
            .output()
            .unwrap();
        let text = stdout(&output);
        assert!(
            text.contains("54e9ujn") && text.contains("PRELUDE_BRIDGE_VERIFICATION_TOKEN"),
            "{text}"
        );
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[test]
fn check_judges_the_file_even_where_a_variable_would_win() {
    let (_directory, path) = file(&format!("drain_timeout = \"soon\"\n{GOOD}"));
    let output = program(&["config", "check", path.to_str().unwrap()])
        .env("PRELUDE_BRIDGE_DRAIN_TIMEOUT", "1s")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("bridge.toml:1: `drain_timeout`"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn check_refuses_what_is_not_toml_without_showing_it() {
    let (_directory, path) = file("verification_token = hunter2\n");
    let output = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("bridge.toml:1: not valid TOML") && !text.contains("hunter2"),
        "{text}"
    );
}

#[test]
fn check_refuses_a_file_without_an_app() {
    let (_directory, path) = file("store = \"memory\"\n");
    let output = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("no app is configured"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_misspelt_variable_is_warned_of() {
    let mut command = program(&["config", "show"]);
    let output = command
        .env("PRELUDE_BRIDGE_DATADIR", "/x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stderr(&output),
        "warning: the variable `PRELUDE_BRIDGE_DATADIR` is not known; did you mean `PRELUDE_BRIDGE_DATA_DIR`?\n"
    );
}

/// A configuration with one thing wrong that only its files show.
struct Case {
    name: &'static str,
    settings: String,
    words: Vec<String>,
    /// A bridge starts with it all the same.
    is_warning_of_serve: bool,
}

fn cases(directory: &Path, authority: &Authority) -> Vec<Case> {
    let file = |name: &str, content: &str| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, other) = (authority.server("one"), authority.server("other"));
    let expired = authority.expired_server("expired");
    let tls = |port: &str, certificate: &Path, key: &Path| {
        format!(
            "[tls.{port}]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n",
            certificate.display(),
            key.display()
        )
    };
    let case = |name, settings: String, words: &[&str]| Case {
        name,
        settings,
        words: words.iter().map(ToString::to_string).collect(),
        is_warning_of_serve: false,
    };
    let missing = directory.join("missing.crt");
    let empty = file("empty.json", r#"{"keys":[]}"#);
    let no_set = file("no-set.json", "[]");
    let credentials = file("bad-credentials.toml", "[[credentials]]\nname = 7\n");
    let blocked = directory.join("file");
    fs::write(&blocked, "").unwrap();
    let data = blocked.join("data");
    let no_log = directory.join("no-log");
    fs::create_dir(&no_log).unwrap();
    fs::write(no_log.join("manifest"), "something else ".repeat(1_000)).unwrap();
    vec![
        case(
            "a certificate that is not there",
            tls("webhook", &missing, &one.key),
            &["TLS of the webhook port", "missing.crt", "cannot be read"],
        ),
        case(
            "the key of another certificate",
            tls("grpc", &one.certificate, &other.key),
            &["TLS of the grpc port", "other.key", "does not belong"],
        ),
        case(
            "a key in the place of a certificate",
            tls("grpc", &one.key, &one.key),
            &["TLS of the grpc port", "no PEM section CERTIFICATE"],
        ),
        Case {
            is_warning_of_serve: true,
            ..case(
                "a certificate whose time is over",
                tls("webhook", &expired.certificate, &expired.key),
                &[
                    "TLS of the webhook port",
                    "expired at 2020-02-01",
                    "expired.crt",
                ],
            )
        },
        case(
            "credentials that are none",
            format!("credentials_file = \"{credentials}\"\n"),
            &["bad-credentials.toml", "is not usable"],
        ),
        case(
            "keys of JWTs that are none",
            format!("[jwt]\njwks_file = \"{no_set}\"\nissuer = \"a\"\naudience = \"b\"\n"),
            &["the keys of the JWT issuer"],
        ),
        case(
            "a key set without a key",
            format!("# app: jwks_file = \"{empty}\"\n"),
            &["the keys of app 54e9ujn", "no usable RSA key"],
        ),
        case(
            "a data directory below a file",
            format!("data_dir = \"{}\"\n", data.display()),
            &["file/data", "ot a directory"],
        ),
        case(
            "a data directory with something else in it",
            format!("data_dir = \"{}\"\n", no_log.display()),
            &["is not a log of prelude-bridge"],
        ),
        case(
            "a port that is open to everybody",
            "grpc_listen = \"0.0.0.0:0\"\n".to_owned(),
            &["would be open to everybody", "token create"],
        ),
    ]
}

/// The file of a case, with ports that are free and an app whose keys are on this machine.
fn file_of(directory: &Path, case: &Case) -> String {
    let app = case.settings.strip_prefix("# app: ");
    let keys = match app {
        Some(keys) => keys.to_owned(),
        None => "jwks_file = \"jwks.json\"\n".to_owned(),
    };
    let mut top = "webhook_listen = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n".to_owned();
    if !case.settings.contains("grpc_listen") {
        top.push_str("grpc_listen = \"127.0.0.1:0\"\n");
    }
    if !case.settings.contains("data_dir") {
        top.push_str("data_dir = \"data\"\n");
    }
    let settings = app.map_or(case.settings.as_str(), |_| "");
    let content = format!("{top}{settings}{GOOD}{keys}");
    let path = directory.join("bridge.toml");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn check_finds_what_a_start_would_find() {
    let authority = Authority::new();
    let directory = tempdir().unwrap();
    fs::write(directory.path().join("token.txt"), TOKEN).unwrap();
    fs::write(directory.path().join("jwks.json"), jwks(&KEY)).unwrap();
    let cases = cases(directory.path(), &authority);
    for case in &cases {
        let path = file_of(directory.path(), case);
        let check = run(&["config", "check", &path]);
        let said = stderr(&check);
        assert_eq!(check.status.code(), Some(2), "{}: {said}", case.name);
        assert_eq!(stdout(&check), "", "{}", case.name);
        for word in &case.words {
            assert!(
                said.contains(word.as_str()),
                "{}: {word}: {said}",
                case.name
            );
        }
        assert!(!said.contains(TOKEN), "{}: {said}", case.name);
    }
    // It made nothing.
    assert!(!directory.path().join("data").exists());
    for case in cases.iter().filter(|case| !case.is_warning_of_serve) {
        // Of a start that failed after it had read credentials it is remembered that there are some.
        let _ = fs::remove_dir_all(directory.path().join("data"));
        let path = file_of(directory.path(), case);
        let serve = run(&["serve", "--config", &path]);
        let said = stderr(&serve);
        assert!(!serve.status.success(), "{}", case.name);
        for word in &case.words {
            assert!(
                said.contains(word.as_str()),
                "{}: {word}: {said}",
                case.name
            );
        }
    }
}

#[test]
fn check_names_all_faults_at_once_and_leaves_everything_as_it_was() {
    let authority = Authority::new();
    let server = authority.server("server");
    let (directory, path) = file("");
    let content = format!(
        "credentials_file = \"no.toml\"\ndata_dir = \"data\"\n\
         [tls.webhook]\ncertificate_file = \"no.crt\"\nkey_file = \"no.key\"\n\
         [tls.grpc]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n{GOOD}\
         jwks_file = \"jwks.json\"\n",
        server.certificate.display(),
        authority.itself().key.display(),
    );
    fs::write(&path, content).unwrap();
    fs::write(directory.path().join("jwks.json"), "{}").unwrap();
    fs::write(directory.path().join("no.toml"), "x").unwrap();
    let before = fs::read_dir(directory.path()).unwrap().count();
    let check = run(&["config", "check", path.to_str().unwrap()]);
    let said = stderr(&check);
    assert_eq!(check.status.code(), Some(2), "{said}");
    for word in ["no.crt", "ca.key", "no.toml", "the keys of app 54e9ujn"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), before);
}

#[test]
fn check_warns_of_a_certificate_that_clients_refuse() {
    let authority = Authority::new();
    let (directory, path) = file("");
    for (issued, words) in [
        (&authority.itself(), "CaUsedAsEndEntity"),
        (
            &authority.client("no-name-of-a-server"),
            "has no subjectAltName",
        ),
    ] {
        let content = format!(
            "data_dir = \"data\"\n[tls.grpc]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n{GOOD}\
             jwks_file = \"jwks.json\"\n",
            issued.certificate.display(),
            issued.key.display(),
        );
        fs::write(&path, content).unwrap();
        fs::write(directory.path().join("jwks.json"), jwks(&KEY)).unwrap();
        let check = run(&["config", "check", path.to_str().unwrap()]);
        let said = stderr(&check);
        assert_eq!(check.status.code(), Some(0), "{said}");
        for part in [
            "warning: TLS of the grpc port",
            words,
            "CA:FALSE",
            "subjectAltName",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_good_beside_the_bridge_that_runs() {
    let bridge = Bridge::start().await;
    let path = bridge.data_dir().with_file_name("bridge.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("data_dir = \"data\"\n{text}")).unwrap();
    let check = run(&["config", "check", path.to_str().unwrap()]);
    assert_eq!(check.status.code(), Some(0), "{}", stderr(&check));
    assert!(stdout(&check).contains("is good"), "{}", stdout(&check));
    bridge.finish().await;
}
