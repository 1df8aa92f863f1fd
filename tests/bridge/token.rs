//! `token` from outside: what it prints where, what it leaves on disk, and its exit codes.

use std::{
    fs,
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::cli::{program, stderr, stdout};

/// A data directory that is not there yet.
struct Scene {
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            directory: tempdir().unwrap(),
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.data_dir().join("credentials.toml")
    }

    fn token(&self, arguments: &[&str]) -> Output {
        let data_dir = self.data_dir();
        let mut command = program(&["token"]);
        command.args(arguments).arg("--data-dir").arg(data_dir);
        command.output().unwrap()
    }

    fn list(&self) -> Vec<Value> {
        let output = self.token(&["list", "--output", "json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn create_prints_the_token_alone_and_keeps_only_its_hash() {
    let scene = Scene::new();
    let output = scene.token(&[
        "create",
        "fraud",
        "--type",
        "user.session.*,user.created",
        "--app",
        "54e9ujn",
        "--streams-max",
        "10",
        "--expires-in",
        "90d",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let token = stdout(&output);
    let token = token.strip_suffix('\n').unwrap();
    assert!(token.starts_with("pb_") && token.len() == 46, "{token}");
    let said = stderr(&output);
    for part in [
        "`fraud`",
        "user.session.*, user.created of 54e9ujn",
        "10 streams",
        "it expires at 2",
        "token rotate fraud",
        "only time",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let text = fs::read_to_string(scene.file()).unwrap();
    for secret in [&said, &text] {
        assert!(!secret.contains(token.trim_start_matches("pb_")));
    }

    let [entry] = scene.list().try_into().unwrap();
    let entry: Value = entry;
    assert_eq!(entry["name"], "fraud");
    assert_eq!(entry["kind"], "token");
    assert_eq!(
        entry["types"],
        serde_json::json!(["user.session.*", "user.created"])
    );
    assert_eq!(entry["apps"], serde_json::json!(["54e9ujn"]));
    assert_eq!(entry["streams_max"], 10);
    assert_eq!(entry["state"], "active");
    assert_eq!(entry["sha256_prefix"].as_str().unwrap().len(), 8);
}

/// How many days are left until a credential expires, rounded; `None` if it never does.
fn days_left(entry: &Value) -> Option<i64> {
    let expires_at: jiff::Timestamp = entry["expires_at"].as_str()?.parse().unwrap();
    let left = expires_at.duration_since(jiff::Timestamp::now());
    Some((left.as_secs() + 43_200) / 86_400)
}

#[test]
fn a_token_expires_after_a_year_unless_another_time_is_given() {
    let scene = Scene::new();
    for (name, arguments, days, said) in [
        ("default", &[][..], Some(365), "it expires at 2"),
        (
            "short",
            &["--expires-in", "90d"],
            Some(90),
            "it expires at 2",
        ),
        (
            "endless",
            &["--expires-in", "never"],
            None,
            "it never expires",
        ),
    ] {
        let output = scene.token(&[&["create", name], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let shown = stderr(&output);
        assert!(shown.contains(said), "{shown}");
        assert!(shown.contains(&format!("token rotate {name}")), "{shown}");
        let entry = scene.list().pop().unwrap();
        assert_eq!(days_left(&entry), days, "{name}");
    }
    let certificate = ["create", "cert", "--certificate", "uri:spiffe://e/1"];
    let output = scene.token(&certificate);
    assert!(!stderr(&output).contains("expires"), "{}", stderr(&output));
    assert_eq!(days_left(&scene.list().pop().unwrap()), None);
}

#[test]
fn rotate_prints_the_new_token_alone_and_keeps_the_old_one_for_a_while() {
    let scene = Scene::new();
    let old = scene.token(&["create", "one", "--type", "user.**", "--expires-in", "90d"]);
    let hash = scene.list()[0]["sha256_prefix"].clone();
    let output = scene.token(&["rotate", "one"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let token = stdout(&output);
    let token = token.strip_suffix('\n').unwrap();
    assert!(token.starts_with("pb_") && token.len() == 46, "{token}");
    let text = fs::read_to_string(scene.file()).unwrap();
    for secret in [&stderr(&output), &text] {
        assert!(!secret.contains(token.trim_start_matches("pb_")));
    }
    for part in [
        "old token is accepted until 2",
        "token list",
        "revoke one --old",
    ] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    let [entry] = scene.list().try_into().unwrap();
    let entry: Value = entry;
    assert_eq!(entry["types"], serde_json::json!(["user.**"]));
    assert_eq!(days_left(&entry), Some(90), "as long as the one before");
    assert_eq!(entry["old_token"]["sha256_prefix"], hash);
    assert_eq!(days_left(&entry["old_token"]), Some(1));
    assert_ne!(entry["sha256_prefix"], hash);

    // A third would end one of the two before its time.
    let third = scene.token(&["rotate", "one"]);
    assert_eq!(third.status.code(), Some(2));
    assert_eq!(stdout(&third), "");
    for part in [
        "two tokens already",
        "revoke one --old",
        "--keep-old-for 0s",
    ] {
        assert!(stderr(&third).contains(part), "{}", stderr(&third));
    }
    assert_eq!(fs::read_to_string(scene.file()).unwrap(), text);
    let revoked = scene.token(&["revoke", "one", "--old"]);
    assert_eq!(revoked.status.code(), Some(0), "{}", stderr(&revoked));
    assert_eq!(scene.list()[0]["old_token"], Value::Null);
    assert_eq!(
        scene.token(&["revoke", "one", "--old"]).status.code(),
        Some(2)
    );
    scene.token(&["rotate", "one"]);
    let at_once = scene.token(&[
        "rotate",
        "one",
        "--keep-old-for",
        "0s",
        "--expires-in",
        "never",
    ]);
    assert_eq!(at_once.status.code(), Some(0), "{}", stderr(&at_once));
    assert!(stderr(&at_once).contains("no older token"));
    let entry = scene.list().remove(0);
    assert_eq!(
        (&entry["old_token"], days_left(&entry)),
        (&Value::Null, None)
    );
    assert_ne!(stdout(&old), stdout(&at_once));
}

#[test]
fn a_rotation_that_cannot_be_meant_changes_nothing() {
    let scene = Scene::new();
    for arguments in [&["rotate", "nobody"][..], &["revoke", "nobody", "--old"]] {
        let output = scene.token(arguments);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("`nobody`"), "{}", stderr(&output));
        assert!(!scene.data_dir().exists());
    }
    scene.token(&["create", "one"]);
    scene.token(&["create", "cert", "--certificate", "uri:spiffe://e/1"]);
    let text = fs::read_to_string(scene.file()).unwrap();
    for (arguments, said) in [
        (&["rotate", "cert"][..], "issue a new certificate"),
        (&["rotate", "one", "--keep-old-for", "91d"], "at most 90d"),
        (
            &["rotate", "one", "--keep-old-for", "soon"],
            "--keep-old-for",
        ),
        (&["rotate", "one", "--expires-in", "0s"], "expired already"),
        (
            &["rotate", "one", "--expires-at", "2020-01-01T00:00:00Z"],
            "expired already",
        ),
        (&["rotate", "two"], "`two`"),
        (&["rotate"], "NAME"),
        (&["revoke", "one", "--old"], "no old token"),
        (&["revoke", "cert", "--old"], "no old token"),
    ] {
        let output = scene.token(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    assert_eq!(fs::read_to_string(scene.file()).unwrap(), text);
    // Whoever takes the output away does not know the token, so it is not the credential's.
    let mut unseen = program(&["token", "rotate", "one", "--data-dir"]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = unseen.arg(scene.data_dir()).stdout(full).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert_eq!(fs::read_to_string(scene.file()).unwrap(), text);
}

#[test]
fn a_linked_file_is_changed_where_it_is() {
    let (scene, elsewhere) = (Scene::new(), tempdir().unwrap());
    let target = elsewhere.path().join("who.toml");
    fs::create_dir(scene.data_dir()).unwrap();
    std::os::unix::fs::symlink(&target, scene.file()).unwrap();
    // The first makes the file that the link leads to.
    for arguments in [&["create", "one"][..], &["rotate", "one"]] {
        let output = scene.token(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert!(fs::symlink_metadata(scene.file()).unwrap().is_symlink());
    assert!(
        fs::read_to_string(&target)
            .unwrap()
            .contains("previous_sha256")
    );
}

#[test]
fn the_file_is_for_this_user_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new();
    assert_eq!(scene.token(&["create", "one"]).status.code(), Some(0));
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(scene.file()), 0o600);
    assert_eq!(mode(scene.data_dir()), 0o700);
}

#[test]
fn a_certificate_needs_no_token() {
    let scene = Scene::new();
    let output = scene.token(&[
        "create",
        "audit",
        "--certificate",
        "spiffe://example.com/audit",
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "");
    let table = stdout(&scene.token(&["list"]));
    let row = table.lines().nth(1).unwrap();
    assert!(
        row.starts_with("audit  certificate spiffe://example.com/audit  all"),
        "{table}"
    );
    let again = scene.token(&[
        "create",
        "other",
        "--certificate",
        "spiffe://example.com/audit",
    ]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("`audit`"), "{}", stderr(&again));
}

#[test]
fn a_name_is_given_once_and_a_revoked_one_can_be_given_again() {
    let scene = Scene::new();
    let first = stdout(&scene.token(&["create", "one"]));
    let again = scene.token(&["create", "one"]);
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(stdout(&again), "");
    assert!(
        stderr(&again).contains("the credential `one`"),
        "{}",
        stderr(&again)
    );

    let revoked = scene.token(&["revoke", "one"]);
    assert_eq!(revoked.status.code(), Some(0));
    assert!(stderr(&revoked).contains("within a second"));
    assert!(scene.list().is_empty());
    assert_ne!(stdout(&scene.token(&["create", "one"])), first);
    assert_eq!(scene.list().len(), 1);
}

#[test]
fn an_unknown_name_cannot_be_revoked() {
    let scene = Scene::new();
    for _ in 0..2 {
        let output = scene.token(&["revoke", "nobody"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("`nobody`"), "{}", stderr(&output));
        assert!(
            stderr(&output).contains("token list"),
            "{}",
            stderr(&output)
        );
        scene.token(&["create", "one"]);
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_made() {
    let scene = Scene::new();
    for arguments in [
        &["create", ""][..],
        &["create", "a\nb"],
        &["create", "one", "--type", "user.**.created"],
        &["create", "one", "--type", "user..*"],
        &["create", "one", "--app", ""],
        &["create", "one", "--streams-max", "0"],
        &["create", "one", "--streams-max", "many"],
        &["create", "one", "--expires-in", "0s"],
        &["create", "one", "--expires-in", "soon"],
        &["create", "one", "--expires-at", "2020-01-01T00:00:00Z"],
        &["create", "one", "--expires-at", "tomorrow"],
        &[
            "create",
            "one",
            "--expires-in",
            "1d",
            "--expires-at",
            "2099-01-01T00:00:00Z",
        ],
        &["create", "one", "--certificate", " a"],
    ] {
        let output = scene.token(arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?} {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
    assert!(!scene.data_dir().exists());
}

#[test]
fn the_first_credential_is_told_to_end_the_time_without() {
    let told = |output: &Output| stderr(output).contains("this is the first credential");
    let scene = Scene::new();
    assert!(told(&scene.token(&["create", "one"])));
    assert!(!told(&scene.token(&["create", "two"])));
    scene.token(&["revoke", "one"]);
    scene.token(&["revoke", "two"]);
    // The file is still there, so nobody was let in without a credential.
    assert!(!told(&scene.token(&["create", "three"])));

    let scene = Scene::new();
    let certificate = ["create", "one", "--certificate", "spiffe://example.com/one"];
    assert!(told(&scene.token(&certificate)));

    // Bridges that this changes nothing for.
    for settings in [
        "credentials_file = \"who.toml\"",
        "allow_anonymous = true",
        "[jwt]\njwks_url = \"https://example.com/jwks\"\nissuer = \"me\"\naudience = \"you\"",
    ] {
        let scene = Scene::new();
        let config = scene.directory.path().join("bridge.toml");
        fs::write(&config, settings).unwrap();
        let config = config.to_str().unwrap();
        let output = scene.token(&["create", "one", "--config", config]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(!told(&output), "{settings}");
    }
}

#[test]
fn a_misspelt_type_or_app_is_told_and_taken() {
    let scene = Scene::new();
    let config = scene.directory.path().join("bridge.toml");
    fs::write(&config, "[[apps]]\nid = \"54e9ujn\"\n").unwrap();
    let config = config.to_str().unwrap();
    let create = |name: &str, arguments: &[&str]| {
        let output = scene.token(&[&["create", name, "--config", config], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    let said = create("a", &["--type", "user.craeted,user.session.*"]);
    assert!(said.contains("did you mean `user.created`?"), "{said}");
    assert!(!said.contains("`--type user.session.*`"), "{said}");
    let said = create("b", &["--app", "54e9unj"]);
    assert!(said.contains("did you mean `54e9ujn`?"), "{said}");
    let said = create("c", &["--app", "54e9ujn", "--type", "user.**"]);
    assert!(
        !said.contains("--app") && !said.contains("--type"),
        "{said}"
    );
    assert_eq!(scene.list().len(), 3);

    let mut command = program(&["token", "create", "d", "--app", "7k2mzqb", "--data-dir"]);
    command
        .arg(scene.data_dir())
        .env("PRELUDE_BRIDGE_APP_ID", "7k2mzqa");
    let said = stderr(&command.output().unwrap());
    assert!(said.contains("did you mean `7k2mzqa`?"), "{said}");
}

#[test]
fn tokens_created_at_once_are_all_kept() {
    let scene = Scene::new();
    let children: Vec<_> = (0..8)
        .map(|index| {
            let mut command = program(&["token", "create", &format!("token-{index}")]);
            command.arg("--data-dir").arg(scene.data_dir());
            let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
            piped.spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    assert_eq!(scene.list().len(), 8);
}

#[test]
fn the_file_that_the_configuration_names_is_the_one() {
    let scene = Scene::new();
    let config = scene.directory.path().join("bridge.toml");
    // Apps whose tokens are not there do not matter here.
    fs::write(
        &config,
        "credentials_file = \"who.toml\"\n[[apps]]\nid = \"one\"\n",
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let mut create = program(&["token", "create", "one", "--config", config]);
    assert_eq!(create.output().unwrap().status.code(), Some(0));
    assert!(scene.directory.path().join("who.toml").exists());
    let mut list = program(&["token", "list"]);
    let output = list.env("PRELUDE_BRIDGE_CONFIG", config).output().unwrap();
    assert!(stdout(&output).contains("\none "), "{}", stdout(&output));
}

#[test]
fn a_file_that_is_wrong_is_named_with_its_line_and_left_alone() {
    let scene = Scene::new();
    scene.token(&["create", "one"]);
    let broken = fs::read_to_string(scene.file()).unwrap() + "typo = 1\n";
    fs::write(scene.file(), &broken).unwrap();
    for arguments in [&["list"][..], &["create", "two"], &["revoke", "one"]] {
        let output = scene.token(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = stderr(&output);
        assert!(
            said.contains("unknown key `typo`") && said.contains("line "),
            "{said}"
        );
        assert_eq!(stdout(&output), "");
    }
    assert_eq!(fs::read_to_string(scene.file()).unwrap(), broken);
}

#[test]
fn an_empty_list_says_what_it_means() {
    let scene = Scene::new();
    let output = scene.token(&["list"]);
    assert!(
        stdout(&output).starts_with("no credentials file"),
        "{}",
        stdout(&output)
    );
    assert!(!scene.data_dir().exists(), "looking makes nothing");
    scene.token(&["create", "one"]);
    scene.token(&["revoke", "one"]);
    assert!(stdout(&scene.token(&["list"])).contains("nobody may subscribe"));
}
