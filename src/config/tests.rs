//! Precedence, faults and defaults, without a process: files in temporary directories, and an
//! environment that is a map.

mod declared;
mod event_sources;
mod store;

use std::{fs, path::Path};

use tempfile::TempDir;

use super::*;

const TOKEN: &str = "tok-secret-1";

/// A directory with a configuration file and a good token in `token.txt`.
struct Scene {
    directory: TempDir,
    sources: Sources,
}

impl Scene {
    fn new(file: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("token.txt"), format!("{TOKEN}\n")).unwrap();
        let path = directory.path().join("bridge.toml");
        fs::write(&path, file).unwrap();
        Self {
            directory,
            sources: Sources {
                file: Some(path),
                ..Sources::default()
            },
        }
    }

    fn without_file() -> Self {
        let mut scene = Self::new("");
        scene.sources.file = None;
        scene
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.insert(name.into(), value.into());
        self
    }

    fn flag(mut self, key: &'static str, value: &str) -> Self {
        self.sources.flags.insert(key, value.to_owned());
        self
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn resolved(&self) -> Resolved {
        resolve(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Faults as `place: message / help`, without the directory.
    fn faults(&self) -> Vec<String> {
        let prefix = format!("{}/", self.directory.path().display());
        let error = match resolve(&self.sources) {
            Ok(resolved) => resolved.servable().unwrap_err(),
            Err(error) => error,
        };
        let lines = error.faults.iter();
        lines
            .map(|fault| format!("{fault} / {}", fault.help).replace(&prefix, ""))
            .collect()
    }

    /// Asserts one fault that contains all of the parts.
    fn refused_with(&self, parts: &[&str]) {
        let faults = self.faults();
        assert_eq!(faults.len(), 1, "{faults:#?}");
        for part in parts {
            assert!(
                faults.concat().contains(part),
                "{part:?} is not in {faults:#?}"
            );
        }
    }
}

fn token_of(app: &EventSource) -> &str {
    app.activation.as_ref().unwrap().token.expose()
}

fn app(rest: &str) -> String {
    format!("[[apps]]\nid = \"one\"\n{rest}\n")
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = "webhook_listen = \"127.0.0.1:1\"\ngrpc_listen = \"127.0.0.1:2\"\nadmin_listen = \"127.0.0.1:3\"\n";
    let scene = Scene::new(file)
        .variable("PRELUDE_BRIDGE_WEBHOOK_LISTEN", "127.0.0.1:11")
        .variable("PRELUDE_BRIDGE_GRPC_LISTEN", "127.0.0.1:12")
        .flag("webhook_listen", "127.0.0.1:21");
    let resolved = scene.resolved();
    let config = &resolved.config;
    let ports = [
        config.webhook_listen,
        config.grpc_listen,
        config.admin_listen,
    ]
    .map(|a| a.port());
    assert_eq!(ports, [21, 12, 3]);
    assert_eq!(config.drain_timeout, Duration::from_secs(15));
    let origins: Vec<String> = resolved
        .settings
        .iter()
        .filter(|setting| setting.key().ends_with("_listen") || setting.key() == "drain_timeout")
        .map(|setting| setting.origin.to_string())
        .collect();
    assert_eq!(
        origins,
        [
            "flag --webhook-listen".to_owned(),
            "environment PRELUDE_BRIDGE_GRPC_LISTEN".to_owned(),
            format!("{}:3", scene.path("bridge.toml")),
            "default".to_owned(),
        ]
    );
}

#[test]
fn every_setting_can_come_from_the_environment() {
    for setting in resolve(&Sources::default()).unwrap().settings {
        let value = setting.value.trim_matches('"');
        if value.is_empty() {
            // An empty variable counts as not set, and not set is what this default says.
            continue;
        }
        let scene = Scene::without_file().variable(&variable_of(setting.key()), value);
        let settings = scene.resolved().settings;
        let same = settings.iter().find(|other| other.key() == setting.key());
        let origin = Origin::Environment(variable_of(setting.key()));
        assert_eq!(same.unwrap().origin, origin);
        assert_eq!(same.unwrap().value, setting.value);
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let scene = Scene::without_file().variable("PRELUDE_BRIDGE_STORE", "");
    assert_eq!(scene.resolved().config.store, Store::Embedded);
}

#[test]
fn one_app_needs_no_file() {
    let scene = Scene::without_file()
        .variable("PRELUDE_BRIDGE_APP_ID", "54e9ujn")
        .variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN);
    let [app] = scene.resolved().config.sources.try_into().unwrap();
    assert_eq!(app.id, "54e9ujn");
    assert_eq!(token_of(&app), TOKEN);
    let url = "https://54e9ujn.session.prelude.dev/.well-known/jwks.json";
    assert_eq!(app.keys, KeySource::JwksUrl(url.to_owned()));
}

#[test]
fn the_app_of_the_environment_can_have_its_token_and_its_keys_elsewhere() {
    let scene = Scene::without_file().variable("PRELUDE_BRIDGE_APP_ID", "one");
    let token = scene.path("token.txt");
    let scene = scene
        .variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE", &token)
        .variable("PRELUDE_BRIDGE_JWKS_FILE", &token);
    let [app] = scene.resolved().config.sources.try_into().unwrap();
    assert_eq!(token_of(&app), TOKEN);
    assert_eq!(app.keys, KeySource::JwksFile(token.into()));
}

#[test]
fn the_app_of_the_environment_wins_over_the_same_app_of_the_file() {
    let file = app("verification_token_file = \"token.txt\"\njwks_url = \"https://keys.example\"");
    let scene = Scene::new(&file)
        .variable("PRELUDE_BRIDGE_APP_ID", "one")
        .variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN", "other");
    let [app] = scene.resolved().config.sources.try_into().unwrap();
    assert_eq!(token_of(&app), "other");
    assert_eq!(
        app.keys,
        KeySource::JwksUrl("https://keys.example".to_owned())
    );
}

#[test]
fn a_second_line_of_a_token_file_is_the_token_before() {
    let scene = Scene::new(&app("verification_token_file = \"token.txt\""));
    for (text, first, second) in [
        ("new\nold\n", "new", Some("old")),
        ("\r\n new \r\n\r\nold", "new", Some("old")),
        ("new\n\n", "new", None),
        ("new old", "new old", None),
    ] {
        fs::write(scene.path("token.txt"), text).unwrap();
        let [app] = scene.resolved().config.sources.try_into().unwrap();
        let activation = app.activation.unwrap();
        assert_eq!(activation.token.expose(), first, "{text:?}");
        let old = activation.old_token;
        assert_eq!(old.as_ref().map(Secret::expose), second, "{text:?}");
    }
    let scene = Scene::new(&app("verification_token_env = \"BOTH\"")).variable("BOTH", "new\nold");
    let [app] = scene.resolved().config.sources.try_into().unwrap();
    let activation = app.activation.unwrap();
    assert_eq!(activation.token.expose(), "new");
    assert_eq!(activation.old_token.unwrap().expose(), "old");
}

#[test]
fn paths_in_the_file_are_taken_from_its_directory() {
    let file = format!(
        "data_dir = \"events\"\n{}",
        app("verification_token_file = \"token.txt\"")
    );
    let scene = Scene::new(&file);
    let config = scene.resolved().config;
    assert_eq!(config.data_dir, Path::new(&scene.path("events")));
    let [app] = config.sources.try_into().unwrap();
    assert_eq!(token_of(&app), TOKEN, "without its line end");
}

#[test]
fn a_file_that_is_not_there_is_refused() {
    let mut scene = Scene::new("");
    scene.sources.file = Some(scene.directory.path().join("other.toml"));
    scene.refused_with(&[
        "other.toml: the configuration file cannot be read",
        "`--config`",
    ]);
}

#[test]
fn unknown_keys_name_file_line_key_and_the_nearest_known_one() {
    for (file, parts) in [
        (
            "\nwebhok_listen = \"x\"",
            [
                "bridge.toml:2: unknown key `webhok_listen`",
                "`webhook_listen`",
            ],
        ),
        (
            "body_bytes_max = 1",
            ["`body_bytes_max`", "`limits.webhook.body_bytes_max`"],
        ),
        (
            "[limit.grpc]\nstreams_max = 1",
            [
                ":2: unknown key `limit.grpc.streams_max`",
                "`limits.grpc.streams_max`",
            ],
        ),
        (
            "[retentoin]",
            [":1: unknown section `retentoin`", "`retention`"],
        ),
        (
            "retention = \"30d\"",
            ["`retention` is a section", "write `[retention]`"],
        ),
        (
            "[log_level]\n",
            ["`log_level` is a value", "write `log_level = …`"],
        ),
        (
            "log_level.x = 1",
            ["unknown key `log_level.x`", "`log_level`"],
        ),
    ] {
        let file = format!("{file}\n{}", app("verification_token_file = \"token.txt\""));
        let faults = Scene::new(&file).faults();
        for part in parts {
            assert!(
                faults.iter().any(|fault| fault.contains(part)),
                "{part:?} is not in {faults:#?}"
            );
        }
    }
}

#[test]
fn unknown_keys_of_an_app_name_the_nearest_known_one() {
    for (key, parts) in [
        (
            "jwks_ulr = \"x\"",
            ["bridge.toml:3: unknown key `apps.jwks_ulr`", "`jwks_url`"],
        ),
        (
            "verification_token = \"x\"",
            [
                "a token does not belong in this file",
                "verification_token_file",
            ],
        ),
        (
            "pem_file = 7",
            ["`apps.pem_file`: the value is not a string", "in quotes"],
        ),
    ] {
        Scene::new(&app(key)).refused_with(&parts);
    }
    Scene::new("apps = [\"one\"]").refused_with(&["an app is not a table", "`[[apps]]`"]);
    let faults = Scene::new("[apps]\nid = \"one\"").faults();
    assert!(
        faults
            .concat()
            .contains("write `[[apps]]`, with two brackets"),
        "{faults:#?}"
    );
}

#[test]
fn values_that_cannot_be_meant_say_what_to_write() {
    for (line, parts) in [
        (
            "webhook_listen = \"localhost:80\"",
            [
                "`localhost:80` is not an IP address and a port",
                "127.0.0.1:8080",
            ],
        ),
        (
            "grpc_listen = 50051",
            [
                "the value is a number, not a string",
                "an IP address and a port",
            ],
        ),
        ("data_dir = \"\"", ["it is empty", "a path"]),
        ("data_dir = [\"a\"]", ["the value is an array", "a path"]),
        (
            "store = \"nats://user:pass@host:4222\"",
            ["there is a password in it", "`password_file`"],
        ),
        (
            "store = \"postgres\"",
            ["`postgres` is not a store", "\"memory\""],
        ),
        ("drain_timeout = 15", ["the value is a number", "\"15s\""]),
        ("drain_timeout = \"15\"", ["`15` has no unit", "\"15s\""]),
        (
            "drain_timeout = \"2h\"",
            ["\"2h\" is out of bounds", "from \"0s\" to \"1h\""],
        ),
        (
            "limits.grpc.stream_age_max = \"999ms\"",
            ["999ms is too short", "at least `1s`"],
        ),
        (
            "limits.grpc.stream_age_max = \"8d\"",
            ["\"8d\" is out of bounds", "from \"0s\" to \"7d\""],
        ),
        (
            "log_format = \"xml\"",
            ["`xml` is not a log format", "\"json\""],
        ),
        (
            "log_level = \"loud\"",
            ["`loud` is not a log level", "\"debug\""],
        ),
        (
            "retention.bytes_max = \"10 gigs\"",
            ["unknown unit `gigs`", "\"10GiB\""],
        ),
        (
            "retention.bytes_max = 1.5",
            ["the value is a fraction", "\"10GiB\""],
        ),
        (
            "retention.id_age_min = \"14d\"",
            ["\"14d\" is out of bounds", "from \"15d\""],
        ),
        (
            "retention.id_bytes_max = \"63MiB\"",
            ["\"63MiB\" is out of bounds", "from \"64MiB\""],
        ),
        (
            "limits.grpc.streams_max = \"10\"",
            ["a string, not a whole number", "such as 100"],
        ),
        (
            "limits.grpc.streams_max = 0",
            ["0 is out of bounds", "from 1 to"],
        ),
        (
            "limits.grpc.streams_max = -1",
            ["`-1` is not a whole number", "such as 100"],
        ),
        (
            "limits.webhook.request_timeout = \"10s\"",
            ["out of bounds", "to \"9s500ms\""],
        ),
        ("log_format = true", ["the value is a boolean", "\"text\""]),
        (
            "log_format = 2026-01-01",
            ["the value is a date", "\"text\""],
        ),
    ] {
        let scene = Scene::new(&format!(
            "{line}\n{}",
            app("verification_token_file = \"token.txt\"")
        ));
        scene.refused_with(&parts);
        let key = line.split(" =").next().unwrap();
        scene.refused_with(&[&format!("bridge.toml:1: `{key}`: ")]);
    }
}

#[test]
fn faults_outside_the_file_name_the_flag_or_the_variable() {
    Scene::without_file()
        .flag("data_dir", " ")
        .refused_with(&["flag --data-dir: `data_dir`: it is empty"]);
    Scene::without_file()
        .variable("PRELUDE_BRIDGE_LIMITS_GRPC_STREAMS_MAX", "many")
        .refused_with(&[
            "environment PRELUDE_BRIDGE_LIMITS_GRPC_STREAMS_MAX: `limits.grpc.streams_max`",
        ]);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut scene = Scene::without_file();
    let odd = std::ffi::OsString::from_vec(vec![0xff]);
    scene
        .sources
        .environment
        .insert("PRELUDE_BRIDGE_STORE".into(), odd);
    scene.refused_with(&["PRELUDE_BRIDGE_STORE: its value is not UTF-8"]);
}

#[test]
fn apps_that_cannot_be_meant_say_what_to_write() {
    let long = "x".repeat(101);
    for (keys, parts) in [
        (
            "",
            [
                "bridge.toml:1: `apps`: the app `one` has no verification token",
                "verification_token_file",
            ],
        ),
        (
            "verification_token_file = \"no.txt\"",
            [
                ":3: `apps.verification_token_file`: the file that it names cannot be read",
                "write the verification token",
            ],
        ),
        (
            "verification_token_file = \"empty.txt\"",
            [
                ":3: the verification token of the app `one` is empty",
                "1 to 100",
            ],
        ),
        (
            "verification_token_file = \"long.txt\"",
            ["is longer than 100 characters", "1 to 100"],
        ),
        (
            "verification_token_file = \"lines.txt\"",
            ["has more than two lines", "1 to 100"],
        ),
        (
            "verification_token_env = \"NOWHERE\"",
            ["the variable `NOWHERE` is not set", "set it"],
        ),
        (
            "verification_token_file = \"token.txt\"\nverification_token_env = \"X\"",
            ["in a file and in a variable", "keep one"],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_url = \"http://keys.example/jwks\"",
            [
                ":4: `apps.jwks_url`: keys are fetched over https only",
                "https://",
            ],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_url = \"keys.example\"",
            ["not a whole URL", "https://"],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_url = \"https://a:b@keys.example\"",
            ["a user or a password", "https://"],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_url = \"ftp://keys.example\"",
            ["neither https nor http", "https://"],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_file = \"no.json\"",
            ["`apps.jwks_file`: no.json cannot be read", "check the path"],
        ),
        (
            "verification_token_file = \"token.txt\"\npem_file = \".\"",
            ["is not a file", "check the path"],
        ),
        (
            "verification_token_file = \"token.txt\"\njwks_file = \"token.txt\"\npem_file = \"token.txt\"",
            ["more than one source of keys", "keep one"],
        ),
    ] {
        let scene = Scene::new(&app(keys));
        fs::write(scene.path("empty.txt"), " \n").unwrap();
        fs::write(scene.path("long.txt"), &long).unwrap();
        fs::write(scene.path("lines.txt"), "one\ntwo\nthree").unwrap();
        scene.refused_with(&parts);
    }
}

#[test]
fn a_token_of_a_hundred_characters_and_an_id_of_sixty_three_fit() {
    let id = "i".repeat(SOURCE_ID_CHARS_MAX);
    let scene = Scene::without_file()
        .variable("PRELUDE_BRIDGE_APP_ID", &id)
        .variable(
            "PRELUDE_BRIDGE_VERIFICATION_TOKEN",
            &"ü".repeat(TOKEN_CHARS_MAX),
        );
    assert_eq!(scene.resolved().config.sources.len(), 1);
    scene
        .variable("PRELUDE_BRIDGE_APP_ID", &format!("{id}i"))
        .refused_with(&["it is longer than 63 characters"]);
}

#[test]
fn ids_that_cannot_be_a_host_and_a_path_are_refused() {
    for (id, part) in [
        ("", "it is empty"),
        ("a/b", "`/` cannot be"),
        ("a.b", "`.` cannot be"),
        ("ä", "cannot be"),
    ] {
        let file = format!("[[apps]]\nid = \"{id}\"\nverification_token_file = \"token.txt\"\n");
        Scene::new(&file).refused_with(&["bridge.toml:2: `apps.id`: ", part]);
    }
    Scene::new("[[apps]]\nverification_token_file = \"token.txt\"\n")
        .refused_with(&["bridge.toml:1: `apps.id`: it is missing"]);
}

#[test]
fn an_app_that_is_there_twice_is_refused() {
    let twice = app("verification_token_file = \"token.txt\"").repeat(2);
    Scene::new(&twice)
        .refused_with(&["bridge.toml:5: `apps.id`: the app `one` is already at bridge.toml:2"]);
}

#[test]
fn plain_http_is_for_this_machine_only() {
    for host in ["localhost", "127.0.0.1:4000", "[::1]:4000"] {
        let url = format!("http://{host}/jwks.json");
        let keys = format!("verification_token_file = \"token.txt\"\njwks_url = \"{url}\"");
        let config = Scene::new(&app(&keys)).resolved().config;
        assert_eq!(
            config.sources.first().unwrap().keys,
            KeySource::JwksUrl(url)
        );
    }
}

#[test]
fn variables_of_an_app_without_its_id_are_refused() {
    Scene::without_file()
        .variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN)
        .refused_with(&[
            "PRELUDE_BRIDGE_VERIFICATION_TOKEN: it is set, but `PRELUDE_BRIDGE_APP_ID` is not",
        ]);
    let file = app("verification_token_env = \"PRELUDE_BRIDGE_VERIFICATION_TOKEN\"");
    let scene = Scene::new(&file).variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN);
    assert_eq!(scene.resolved().config.sources.len(), 1);
}

#[test]
fn nothing_to_serve_says_how_to_set_an_app() {
    Scene::without_file().refused_with(&[
        "no app is configured",
        "PRELUDE_BRIDGE_APP_ID",
        "[[apps]]",
        "[[sources]]",
    ]);
}

#[test]
fn two_listeners_with_one_address_are_refused() {
    Scene::without_file()
        .flag("admin_listen", "127.0.0.1:8080")
        .refused_with(&[
            "flag --admin-listen: `admin_listen`: 127.0.0.1:8080 is taken by `webhook_listen`",
        ]);
    let free = Scene::without_file()
        .flag("grpc_listen", "127.0.0.1:0")
        .flag("admin_listen", "127.0.0.1:0");
    assert!(resolve(&free.sources).is_ok());
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_the_file() {
    let scene = Scene::new("store = 1\nlog_leve = \"info\"\n[[apps]]\nid = \"a b\"\n")
        .variable("PRELUDE_BRIDGE_DRAIN_TIMEOUT", "soon");
    let places: Vec<String> = scene
        .faults()
        .iter()
        .map(|fault| fault.split(": ").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        places,
        [
            "bridge.toml:1",
            "bridge.toml:2",
            "bridge.toml:3",
            "bridge.toml:4",
            "environment PRELUDE_BRIDGE_DRAIN_TIMEOUT"
        ]
    );
}

#[test]
fn a_token_is_in_no_debug_print_no_listing_and_no_fault() {
    let scene = Scene::new(&app("verification_token_file = \"token.txt\""));
    let resolved = scene.resolved();
    let shown = format!("{resolved:?}{}{}", resolved.to_toml(), resolved.to_json());
    assert!(!shown.contains(TOKEN), "{shown}");
    fs::write(scene.path("token.txt"), TOKEN.repeat(10)).unwrap();
    assert!(!scene.faults().concat().contains(TOKEN));
}

#[test]
fn what_is_shown_means_the_same_when_it_is_read_back() {
    let file = "store = \"memory\"\n[limits.webhook]\nheader_timeout = \"1s\"\n[[apps]]\nid = \"one\"\nverification_token_file = \"token.txt\"\n";
    let first = Scene::new(file).flag("log_level", "debug");
    let before = first.resolved();
    let second = Scene::new(&before.to_toml());
    let mut after = second.resolved();
    assert_eq!(
        after.config.data_dir,
        value::absolute(&before.config.data_dir)
    );
    after.config.data_dir.clone_from(&before.config.data_dir);
    for (one, other) in after.config.sources.iter_mut().zip(&before.config.sources) {
        one.origin = other.origin.clone();
    }
    assert_eq!(after.config, before.config);
}

#[test]
fn a_misspelt_variable_is_warned_of_and_a_strange_one_is_not() {
    let scene = Scene::without_file()
        .variable("PRELUDE_BRIDGE_DATADIR", "/x")
        .variable("PRELUDE_BRIDGE_SERVICE_HOST", "10.0.0.1");
    let warnings = scene.resolved().warnings;
    assert_eq!(
        warnings,
        [
            "the variable `PRELUDE_BRIDGE_DATADIR` is not known; did you mean `PRELUDE_BRIDGE_DATA_DIR`?"
        ]
    );
}

#[test]
fn a_file_judged_alone_is_not_hidden_by_variables() {
    let scene =
        Scene::new("drain_timeout = \"soon\"").variable("PRELUDE_BRIDGE_DRAIN_TIMEOUT", "1s");
    assert!(resolve(&scene.sources).is_ok());
    assert!(resolve(&scene.sources.clone().without_setting_variables()).is_err());
}

#[test]
fn a_file_judged_alone_gets_no_source_and_no_keys_from_variables_but_tokens() {
    let alone = |scene: &Scene| {
        let resolved = resolve(&scene.sources.clone().without_setting_variables());
        resolved.and_then(Resolved::servable)
    };
    for (file, id, others) in [
        (
            "",
            "PRELUDE_BRIDGE_SOURCE_ID",
            ["SOURCE_KIND=verify", "PEM_FILE=token.txt"],
        ),
        (
            "[[sources]]\nid = \"two\"\nkind = \"verify\"\n",
            "PRELUDE_BRIDGE_SOURCE_ID",
            ["PEM_FILE=token.txt", "SOURCE_KIND=notify"],
        ),
        (
            "[[sources]]\nid = \"two\"\nkind = \"verify\"\n",
            "PRELUDE_BRIDGE_SOURCE_ID",
            ["JWKS_FILE=token.txt", "SOURCE_KIND=notify"],
        ),
    ] {
        let mut scene = Scene::new(file).variable(id, "two");
        for other in others {
            let (name, value) = other.split_once('=').unwrap();
            let value = if name.ends_with("FILE") {
                scene.path(value)
            } else {
                value.to_owned()
            };
            scene = scene.variable(&format!("PRELUDE_BRIDGE_{name}"), &value);
        }
        assert!(
            resolve(&scene.sources).and_then(Resolved::servable).is_ok(),
            "{file}"
        );
        assert!(alone(&scene).is_err(), "{file}");
    }
    // A token is no part of a file, for either kind of section.
    for (section, id) in [
        ("[[apps]]\nid = \"one\"\n", "PRELUDE_BRIDGE_APP_ID"),
        (
            "[[sources]]\nid = \"one\"\nkind = \"auth\"\n",
            "PRELUDE_BRIDGE_SOURCE_ID",
        ),
    ] {
        let file = format!("{section}jwks_url = \"ftp://example.com\"\n");
        let scene = |file: &str| {
            Scene::new(file)
                .variable(id, "one")
                .variable("PRELUDE_BRIDGE_VERIFICATION_TOKEN", TOKEN)
        };
        let url = "https://example.com/jwks.json";
        let overridden = scene(&file).variable("PRELUDE_BRIDGE_JWKS_URL", url);
        assert!(resolve(&overridden.sources).is_ok());
        assert!(alone(&overridden).is_err());
        assert!(alone(&scene(section)).is_ok());
    }
}

#[test]
fn an_address_gets_a_quarter_of_the_grpc_port_unless_the_file_says_how_much() {
    let limits = |text: &str| {
        let limits = Scene::new(text).resolved().config.grpc_limits;
        [
            limits.connections_per_address_max,
            limits.streams_per_address_max,
            limits.calls_per_address_max,
            limits.watches_per_address_max,
        ]
    };
    assert_eq!(limits(""), [2_500, 2_500, 256, 1_024]);
    let small = "[limits.grpc]\nconnections_max = 50\nstreams_max = 8\ncalls_max = 3\n\
                 watches_max = 1\n";
    assert_eq!(limits(small), [12, 2, 1, 1]);
    let said = format!(
        "{small}connections_per_address_max = 50\nstreams_per_address_max = 1\n\
         calls_per_address_max = 2\nwatches_per_address_max = 10000000\n"
    );
    assert_eq!(limits(&said), [50, 1, 2, 10_000_000]);
}

#[test]
fn addresses_are_lists_in_the_file_and_commas_in_a_variable() {
    let text = "allowed_sources = [\"prelude\", \"10.0.0.0/8\"]\ntrusted_proxies = [\"::1\"]\n\
                grpc_proxies = [\"10.0.0.5\", \"2001:db8::/48\"]\n\
                web_origins = [\"https://app.example.com:8443\", \"*\"]\n";
    let resolved = Scene::new(text).resolved();
    let networks = resolved.config.allowed_networks();
    assert_eq!(networks.len(), 4);
    assert!(
        networks
            .iter()
            .any(|network| network.to_string() == "34.252.67.209")
    );
    // As shown, it reads back.
    let again = Scene::new(&resolved.to_toml()).resolved();
    assert_eq!(
        again.config.allowed_sources,
        resolved.config.allowed_sources
    );
    assert_eq!(
        again.config.trusted_proxies,
        resolved.config.trusted_proxies
    );
    assert_eq!(again.config.grpc_proxies, resolved.config.grpc_proxies);
    assert_eq!(again.config.grpc_proxies.len(), 2);
    assert_eq!(again.config.web_origins, resolved.config.web_origins);
    assert_eq!(again.config.web_origins.len(), 2);
    let json = resolved.to_json();
    let shown = json["settings"].as_array().unwrap();
    let shown = shown
        .iter()
        .find(|setting| setting["key"] == "allowed_sources");
    assert_eq!(
        shown.unwrap()["value"],
        serde_json::json!(["prelude", "10.0.0.0/8"])
    );
}

#[test]
fn an_address_that_is_none_is_refused_with_its_key() {
    for (text, reason) in [
        (
            "allowed_sources = [\"preludes\"]",
            "`preludes` is not an IP address or network",
        ),
        (
            "allowed_sources = [10]",
            "the value is an array of other things than strings",
        ),
        (
            "allowed_sources = 10",
            "the value is a number, not an array",
        ),
        (
            "trusted_proxies = [\"10.0.0.1/8\"]",
            "the network is `10.0.0.0/8`",
        ),
        ("data_dir = [\"x\"]", "the value is an array"),
        (
            "web_origins = [\"https://app.example.com/path\"]",
            "`https://app.example.com/path` is not an origin",
        ),
    ] {
        let faults = Scene::new(text).faults();
        assert!(
            faults.iter().any(|fault| fault.contains(reason)),
            "{text}: {faults:?}"
        );
    }
}

#[test]
fn an_app_without_a_token_finds_the_one_that_setup_made() {
    let scene = Scene::new("data_dir = \"data\"\n[[apps]]\nid = \"54e9ujn\"\n");
    assert!(
        scene
            .faults()
            .iter()
            .any(|fault| fault.contains("webhook setup"))
    );
    let planned = planned_sources(&scene.sources).unwrap();
    let [
        Planned {
            id,
            kind: SourceKind::Auth,
            token_source: TokenSource::File(path),
        },
    ] = planned.as_slice()
    else {
        panic!("{planned:?}");
    };
    assert_eq!(id, "54e9ujn");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "made-by-setup\n").unwrap();
    let app = &scene.resolved().config.sources[0];
    let activation = app.activation.as_ref().unwrap();
    assert_eq!(activation.token.expose(), "made-by-setup");
    assert_eq!(activation.token_source, TokenSource::File(path.clone()));
}

const JWT: &str = "[jwt]\njwks_url = \"https://auth.example.com/jwks.json\"\n\
                   issuer = \"https://auth.example.com/\"\naudience = \"bridge\"\n";

#[test]
fn credentials_are_in_the_data_directory_unless_another_file_is_named() {
    let scene = Scene::new("data_dir = \"d\"");
    let options = scene.resolved().config.credentials_options();
    let expected = PathBuf::from(scene.path("d/credentials.toml"));
    assert_eq!(options.file, Some(expected.clone()));
    assert!(!options.file_is_named && !options.anonymous && options.jwt.is_none());
    assert_eq!(credentials_file(&scene.sources).unwrap().0, expected);

    let scene = Scene::new("credentials_file = \"c.toml\"\nallow_anonymous = true");
    let options = scene.resolved().config.credentials_options();
    let expected = PathBuf::from(scene.path("c.toml"));
    assert_eq!(options.file, Some(expected.clone()));
    assert!(options.file_is_named && options.anonymous);
    assert_eq!(credentials_file(&scene.sources).unwrap().0, expected);
}

#[test]
fn commands_for_some_settings_do_not_mind_faults_of_others() {
    let scene = Scene::new("credentials_file = \"c.toml\"\ndrain_timeout = \"soon\"\nx = 1");
    let scene = scene.variable("PRELUDE_BRIDGE_LIMITS_GRPC_STREAMS_MAX", "0");
    let (file, _) = credentials_file(&scene.sources).unwrap();
    assert_eq!(file, PathBuf::from(scene.path("c.toml")));
    assert!(planned_sources(&scene.sources).unwrap().is_empty());
    assert_eq!(scene.faults().len(), 3);
    let wrong = scene.variable("PRELUDE_BRIDGE_DATA_DIR", " ");
    assert!(credentials_file(&wrong.sources).is_err());
    assert!(planned_sources(&wrong.sources).is_err());
}

#[test]
fn an_issuer_of_jwts_is_whole_or_refused() {
    let scene = Scene::new(&format!("{JWT}apps_claim = \"apps\"\n"));
    let jwt = scene.resolved().config.jwt.unwrap();
    assert_eq!(jwt.types_claim, "types");
    assert_eq!(jwt.apps_claim.as_deref(), Some("apps"));
    assert_eq!(jwt.streams_max, 100);

    for (line, key) in [
        ("issuer", "jwt.issuer"),
        ("audience", "jwt.audience"),
        ("jwks_url", "jwt.jwks_url"),
    ] {
        let without: Vec<&str> = JWT.lines().filter(|one| !one.starts_with(line)).collect();
        let scene = Scene::new(&without.join("\n"));
        scene.refused_with(&["bridge.toml:", key, "missing"]);
    }
    let both = format!("{JWT}jwks_file = \"jwks.json\"\n");
    Scene::new(&both).refused_with(&[":5: `jwt.jwks_file`", "keep one"]);
    let insecure = JWT.replace(
        "https://auth.example.com/jwks",
        "http://auth.example.com/jwks",
    );
    Scene::new(&insecure).refused_with(&[":2: `jwt.jwks_url`", "https only"]);
}

#[test]
fn a_switch_is_true_or_false() {
    for (text, expected) in [("true", true), ("1", true), ("false", false)] {
        let scene = Scene::without_file().variable("PRELUDE_BRIDGE_ALLOW_ANONYMOUS", text);
        let config = scene.resolved().config;
        assert_eq!(config.allow_anonymous, expected, "{text}");
    }
    let scene = Scene::without_file().variable("PRELUDE_BRIDGE_ALLOW_ANONYMOUS", "yes");
    scene.refused_with(&[
        "`allow_anonymous`: `yes` is neither true nor false",
        "true or false",
    ]);
    Scene::new("allow_anonymous = \"true\"").refused_with(&["a string, not true or false"]);
}
