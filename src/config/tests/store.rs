//! The store: its address, its stream or table, its login, its TLS, and what does not go together.

use super::{
    super::store::{Login, Nats, Postgres, StoreTls},
    *,
};

const STORE: &str = "PRELUDE_BRIDGE_STORE";
const PASSWORD: &str = "PRELUDE_BRIDGE_STORE_PASSWORD";
const STORE_TOKEN: &str = "PRELUDE_BRIDGE_STORE_TOKEN";
const SECRET: &str = "hunter2-of-the-store";

fn section(lines: &str) -> Scene {
    let scene = Scene::new(&format!("[store]\n{lines}\n"));
    fs::write(scene.path("secret.txt"), format!("{SECRET}\r\n")).unwrap();
    scene
}

fn nats(scene: &Scene) -> Nats {
    match scene.resolved().config.store {
        Store::Nats(nats) => nats,
        other => panic!("{other:?}"),
    }
}

fn postgres(scene: &Scene) -> Postgres {
    match scene.resolved().config.store {
        Store::Postgres(postgres) => postgres,
        other => panic!("{other:?}"),
    }
}

/// Of a scene that `resolve` takes or refuses: the text of all faults, empty if there are none.
fn complaint(scene: &Scene) -> String {
    match resolve(&scene.sources) {
        Ok(_) => String::new(),
        Err(error) => error
            .faults
            .iter()
            .map(|fault| format!("{fault} / {}\n", fault.help))
            .collect(),
    }
}

fn hosts(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(Host::to_string).collect()
}

fn password(login: &Login) -> (&str, &str) {
    match login {
        Login::User { name, password } => (name, password.as_ref().unwrap().text.expose()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_store_is_named_by_a_flag_a_variable_a_value_or_a_section() {
    for scene in [
        Scene::without_file().flag("store.url", "nats://a"),
        Scene::without_file().variable(STORE, "nats://a"),
        Scene::new("store = \"nats://a\""),
        section("url = \"nats://a\""),
        section("url = \"memory\"").variable(STORE, "nats://a"),
        Scene::new("store = \"memory\"").flag("store.url", "nats://a"),
    ] {
        let nats = nats(&scene);
        assert_eq!(hosts(&nats.hosts), ["a:4222"]);
        assert_eq!((&*nats.stream, nats.replicas), ("prelude-bridge", 3));
        assert_eq!((nats.login, nats.tls), (Login::None, None));
    }
    let config = section("").resolved().config;
    assert_eq!(config.store, Store::Embedded);
    Scene::new("store = \"memory\"\n[store]\nstream = \"events\"")
        .refused_with(&["duplicate key", "either `store = …` or a section `[store]`"]);
    Scene::without_file()
        .variable("PRELUDE_BRIDGE_STORE_URL", "nats://a")
        .refused_with(&[
            "STORE_URL: it is not known",
            "set `PRELUDE_BRIDGE_STORE` instead",
        ]);
}

#[test]
fn urls_have_one_server_or_several() {
    for (url, expected) in [
        ("nats://a", vec!["a:4222"]),
        ("NATS://a:1/", vec!["a:1"]),
        (
            "nats://a:4222, b ,c-1.x_y:4",
            vec!["a:4222", "b:4222", "c-1.x_y:4"],
        ),
        ("nats://a,nats://b:65535", vec!["a:4222", "b:65535"]),
        (
            "nats://[::1],[2001:DB8::1]:7",
            vec!["[::1]:4222", "[2001:db8::1]:7"],
        ),
        ("tls://192.0.2.1", vec!["192.0.2.1:4222"]),
    ] {
        let nats = nats(&Scene::without_file().variable(STORE, url));
        assert_eq!(hosts(&nats.hosts), expected, "{url}");
        assert_eq!(nats.tls.is_some(), url.starts_with("tls"), "{url}");
    }
    for (url, servers, database) in [
        ("postgres://me@a", vec!["a:5432"], "me"),
        ("postgresql://me@a,b:5433/", vec!["a:5432", "b:5433"], "me"),
        (
            "postgres://me@[::1]/ev%20ents",
            vec!["[::1]:5432"],
            "ev ents",
        ),
    ] {
        let postgres = postgres(&Scene::without_file().flag("store.url", url));
        assert_eq!(hosts(&postgres.hosts), servers, "{url}");
        assert_eq!(postgres.database, database, "{url}");
        assert_eq!(postgres.user, "me");
        assert_eq!(postgres.password, None);
        assert_eq!(
            (&*postgres.table, postgres.require_standby),
            ("prelude_bridge", true)
        );
    }
}

#[test]
fn urls_that_cannot_be_meant_say_what_is_wrong_with_them() {
    let most = |count| vec!["a"; count].join(",");
    for (url, part) in [
        (
            "mysql://a",
            "`mysql` is not the scheme of a store; known are `nats`",
        ),
        ("nat://a", "did you mean `nats`?"),
        ("postgre://a", "did you mean `postgres`?"),
        ("://a", "its scheme is not that of a store"),
        ("a b://a", "its scheme is not that of a store"),
        (
            "nats:a:4222",
            "neither a word for a store nor the whole URL",
        ),
        (
            "localhost:4222",
            "neither a word for a store nor the whole URL",
        ),
        ("embeded", "did you mean `embedded`?"),
        ("nats://", "the name of a server is missing"),
        ("nats://a,,b", "the name of a server is missing"),
        ("nats://a:0", "`a:0` is not a host, or a host and a port"),
        ("nats://a:65536", "`a:65536` is not a host"),
        ("nats://a:+1", "`a:+1` is not a host"),
        ("nats://a:", "`a:` is not a host"),
        ("nats://::1", "in brackets"),
        ("nats://[::1]4222", "`[::1]4222` is not a host"),
        ("nats://a_b c", "is not a host"),
        ("nats://a/stream", "nothing can follow the servers of NATS"),
        ("nats://a?tls=1", "nothing can follow the servers of NATS"),
        ("nats://a,tls://b", "different schemes"),
        ("postgres://me@a/x/y", "not the name of a database"),
        ("postgres://me@a/x#y", "it has a `#` in it"),
        ("postgres://me@a/x?sslmode=prefer", "neither `verify-full`"),
        ("postgres://me@a/x?sslmode=require", "neither `verify-full`"),
        (
            "postgres://me@a/x?sslrootcert=ca",
            "set `store.tls_ca_file` instead",
        ),
        (
            "postgres://a/x?password=hunter2-of-the-store",
            "set `store.password_file` instead",
        ),
        (
            "postgres://a/x?hunter2-of-the-store",
            "another parameter than `sslmode`",
        ),
        ("nats://@a", "its login has no user"),
        ("nats://:x@a", "its login has no user"),
        ("postgres://a", "PostgreSQL needs the name of a user"),
        (&format!("nats://{}", most(17)), "more than 16 servers"),
        (&format!("nats://{}", "a".repeat(254)), "is not a host"),
        (
            &format!("postgres://me@a/{}", "d".repeat(64)),
            "of up to 63 bytes",
        ),
    ] {
        let scene = Scene::without_file().flag("store.url", url);
        scene.refused_with(&["flag --store: `store`: ", part]);
        assert!(!complaint(&scene).contains(SECRET), "{url}");
    }
    for url in [
        format!("nats://{}", most(16)),
        format!("nats://{}", "a".repeat(253)),
        format!("postgres://me@a/{}", "d".repeat(63)),
    ] {
        assert_eq!(
            complaint(&Scene::without_file().flag("store.url", &url)),
            ""
        );
    }
}

#[test]
fn a_secret_in_the_url_is_for_the_variable_only() {
    let token = format!("nats://{SECRET}@a");
    let with_user = format!("nats://me:{SECRET}@a");
    let of_postgres = format!("postgres://me:{SECRET}@a/events");
    for (url, what, setting) in [
        (&token, "a token", "token_file"),
        (&with_user, "a password", "password_file"),
        (&of_postgres, "a password", "password_file"),
    ] {
        for (scene, place) in [
            (
                Scene::without_file().flag("store.url", url),
                "flag --store: `store`: ",
            ),
            (
                Scene::new(&format!("store = \"{url}\"")),
                "bridge.toml:1: `store`: ",
            ),
            (
                section(&format!("url = \"{url}\"")),
                "bridge.toml:2: `store.url`: ",
            ),
        ] {
            let help = "secrets come from the environment or from files";
            scene.refused_with(&[place, &format!("there is {what} in it"), help, setting]);
            assert!(!complaint(&scene).contains(SECRET));
        }
        let scene = Scene::without_file().variable(STORE, url);
        let resolved = scene.resolved();
        let shown = format!("{resolved:?}{}{}", resolved.to_toml(), resolved.to_json());
        assert!(!shown.contains(SECRET), "{shown}");
        match &resolved.config.store {
            Store::Nats(Nats {
                login: Login::Token(token),
                ..
            }) => {
                assert_eq!(token.text.expose(), SECRET);
            }
            Store::Nats(Nats { login, .. }) => assert_eq!(password(login), ("me", SECRET)),
            Store::Postgres(postgres) => {
                assert_eq!(postgres.password.as_ref().unwrap().text.expose(), SECRET);
                assert_eq!((&*postgres.user, &*postgres.database), ("me", "events"));
            }
            other => panic!("{other:?}"),
        }
        assert!(!resolved.config.store.to_string().contains("me"), "{url}");
    }
}

#[test]
fn a_mistyped_url_with_a_secret_is_not_repeated() {
    for login in [
        "me:hunt/er2",
        "me:hunt?er2",
        "me:hunt#er2",
        "me:hunt@er2",
        "me:hunt,er2",
        "me:hun%ffer2",
    ] {
        for url in [
            format!("nats://{login}@a"),
            format!("nats//{login}@a"),
            format!("nats:{login}@a"),
            format!("{login}@a:4222"),
            format!("nats://a:x,{login}@b"),
            format!("nats://{login}@a:70000"),
            format!("postgres://{login}@a/x/y"),
            format!("postgres://a/x?sslmode={login}@y"),
            format!("{login}://me@a"),
        ] {
            let scene = Scene::without_file().variable(STORE, &url);
            let said = complaint(&scene);
            assert!(said.contains("`store`: "), "{url}: {said:?}");
            for piece in ["hun", "er2"] {
                assert!(!said.contains(piece), "{url}: {said}");
            }
        }
    }
    let scene = Scene::without_file().variable(STORE, "nats://me:p%40ss%2Cw%2Ford%25@a");
    assert_eq!(password(&nats(&scene).login), ("me", "p@ss,w/ord%"));
}

#[test]
fn a_login_comes_from_variables_and_files_in_the_way_of_tokens() {
    let user = "url = \"nats://a\"\nuser = \"me\"";
    let scene = section(&format!("{user}\npassword_file = \"secret.txt\""));
    let resolved = nats(&scene);
    assert_eq!(
        password(&resolved.login),
        ("me", SECRET),
        "without the line end"
    );
    let scene = section(&format!("{user}\npassword_env = \"MINE\"")).variable("MINE", SECRET);
    assert_eq!(password(&nats(&scene).login), ("me", SECRET));
    let scene = section(user).variable(PASSWORD, SECRET);
    assert_eq!(password(&nats(&scene).login), ("me", SECRET));
    // A space can be part of a password.
    let scene = section(user).variable(PASSWORD, " a b ");
    assert_eq!(password(&nats(&scene).login), ("me", " a b "));
    for scene in [
        section("url = \"nats://a\"\ntoken_file = \"secret.txt\""),
        section("url = \"nats://a\"\ntoken_env = \"MINE\"").variable("MINE", SECRET),
        section("url = \"nats://a\"").variable(STORE_TOKEN, SECRET),
    ] {
        let login = nats(&scene).login;
        let Login::Token(token) = login else {
            panic!("{login:?}");
        };
        assert_eq!(token.text.expose(), SECRET);
    }
    let scene = section("url = \"nats://a\"\ncredentials_file = \"bridge.creds\"");
    let file = scene.path("bridge.creds").into();
    assert_eq!(nats(&scene).login, Login::CredentialsFile(file));
    let scene = section("url = \"postgres://a\"\nuser = \"me\"").variable(PASSWORD, SECRET);
    let postgres = postgres(&scene);
    assert_eq!((&*postgres.user, &*postgres.database), ("me", "me"));
    assert_eq!(postgres.password.unwrap().text.expose(), SECRET);
}

#[test]
fn a_login_of_the_environment_replaces_that_of_the_file() {
    let of_file = "url = \"nats://a\"\nuser = \"me\"\npassword_file = \"secret.txt\"";
    let scene = section(of_file).variable(PASSWORD, "other");
    assert_eq!(password(&nats(&scene).login), ("me", "other"));
    let scene = section(of_file).variable(STORE, "nats://you:third@b");
    assert_eq!(password(&nats(&scene).login), ("you", "third"));
    let scene = section(of_file).variable(STORE_TOKEN, "token");
    assert!(matches!(nats(&scene).login, Login::Token(_)));
    // What is shown is what is in force.
    let shown = scene.resolved().to_toml();
    assert!(
        shown.contains("\ntoken_env = \"PRELUDE_BRIDGE_STORE_TOKEN\""),
        "{shown}"
    );
    assert!(
        shown.contains("\nuser = \"\"") && shown.contains("\npassword_file = \"\""),
        "{shown}"
    );
    let scene = section(of_file).variable("PRELUDE_BRIDGE_STORE_CREDENTIALS_FILE", "/my.creds");
    assert_eq!(
        nats(&scene).login,
        Login::CredentialsFile("/my.creds".into())
    );
}

#[test]
fn logins_that_contradict_each_other_or_are_not_whole_are_refused() {
    let file = |lines: &str| section(&format!("url = \"nats://a\"\n{lines}"));
    for (scene, parts) in [
        (
            file("user = \"me\"\npassword_file = \"secret.txt\"\ntoken_file = \"secret.txt\""),
            [
                "bridge.toml:5: `store.token_file`: `store.password_file` says how to log in too",
                "keep one",
            ],
        ),
        (
            file("token_env = \"X\"\ncredentials_file = \"x\""),
            [
                "`store.credentials_file`: `store.token_env` says",
                "keep one",
            ],
        ),
        (
            Scene::without_file()
                .variable(STORE, "nats://me:x@a")
                .variable(PASSWORD, SECRET),
            [
                "PRELUDE_BRIDGE_STORE_PASSWORD: `PRELUDE_BRIDGE_STORE_PASSWORD`: `store` says",
                "keep one",
            ],
        ),
        (
            file("user = \"me\"\ntoken_file = \"secret.txt\""),
            [
                ":3: `store.user`: `store.token_file` needs no user",
                "keep one",
            ],
        ),
        (
            file("user = \"me\""),
            [
                ":3: `store.user`: there is no password for this user",
                "PRELUDE_BRIDGE_STORE_PASSWORD",
            ],
        ),
        (
            file("password_file = \"secret.txt\""),
            [
                ":3: `store.password_file`: there is no user with this password",
                "`store.user`",
            ],
        ),
        (
            section("url = \"postgres://me@a\"\nuser = \"you\""),
            [
                ":3: `store.user`: the URL of the store has another user",
                "keep one",
            ],
        ),
        (
            file("user = \"me\"\npassword_file = \"no.txt\""),
            [
                ":4: `store.password_file`: the file that it names cannot be read",
                "by this user only",
            ],
        ),
        (
            file("user = \"me\"\npassword_file = \"/dev/null\""),
            ["it is not a regular file", "by this user only"],
        ),
        (
            file("token_env = \"NOWHERE\""),
            [
                ":3: `store.token_env`: the variable `NOWHERE` is not set",
                "set it",
            ],
        ),
        (
            file("token_env = \"EMPTY\"").variable("EMPTY", ""),
            [
                ":3: `store.token_env`: the password or token is empty",
                "one line",
            ],
        ),
        (
            file("token_file = \"lines.txt\""),
            [
                "has a control character in it, such as a second line",
                "one line",
            ],
        ),
        (
            file("").variable(STORE_TOKEN, &"x".repeat(8193)),
            ["the password or token is too long", "8192 bytes"],
        ),
        (
            file("password = \"hunter2-of-the-store\""),
            [
                ":3: `store.password`: a secret does not belong in this file",
                "`password_file = ",
            ],
        ),
        (
            file("token = \"hunter2-of-the-store\""),
            [
                ":3: `store.token`: a secret does not belong in this file",
                "`token_env = ",
            ],
        ),
    ] {
        fs::write(scene.path("lines.txt"), "one\ntwo").unwrap();
        scene.refused_with(&parts);
        assert!(!complaint(&scene).contains("hunter2"));
    }
    assert_eq!(
        complaint(&file("").variable(STORE_TOKEN, &"x".repeat(8192))),
        ""
    );
    let pasted = file(&format!("token_env = \"{SECRET}\""));
    pasted.refused_with(&["it names a variable that is not set"]);
    assert!(!complaint(&pasted).contains(SECRET));
    let long = format!("nats://{}@a", "x".repeat(8193));
    Scene::without_file()
        .variable(STORE, &long)
        .refused_with(&["longer than 8192 bytes"]);
}

#[test]
fn an_empty_secret_variable_counts_as_not_set() {
    let scene = section("url = \"nats://a\"")
        .variable(PASSWORD, "")
        .variable(STORE_TOKEN, "");
    assert_eq!(nats(&scene).login, Login::None);
    assert_eq!(complaint(&Scene::without_file().variable(PASSWORD, "")), "");
}

#[test]
fn settings_that_do_not_fit_the_kind_of_store_are_refused() {
    for (url, lines, parts) in [
        (
            "nats://a",
            "table = \"events\"",
            [
                "bridge.toml:3: `store.table`: the store is NATS JetStream",
                "are for PostgreSQL",
            ],
        ),
        (
            "nats://a",
            "require_standby = false",
            ["`store.require_standby`", "are for PostgreSQL"],
        ),
        (
            "postgres://me@a",
            "stream = \"events\"",
            [
                ":3: `store.stream`: the store is PostgreSQL",
                "are for NATS",
            ],
        ),
        (
            "postgres://me@a",
            "replicas = 1",
            ["`store.replicas`", "are for NATS"],
        ),
        (
            "postgres://me@a",
            "token_file = \"secret.txt\"",
            ["`store.token_file`", "are for NATS"],
        ),
        (
            "postgres://me@a",
            "credentials_file = \"x\"",
            ["`store.credentials_file`", "are for NATS"],
        ),
        (
            "embedded",
            "replicas = 1",
            ["the store is embedded", "write the URL of the store"],
        ),
        (
            "memory",
            "tls_ca_file = \"x\"",
            ["the store is memory", "write the URL of the store"],
        ),
    ] {
        section(&format!("url = \"{url}\"\n{lines}")).refused_with(&parts);
    }
    section("stream = \"events\"")
        .refused_with(&["bridge.toml:2: `store.stream`: the store is embedded"]);
    Scene::without_file()
        .variable("PRELUDE_BRIDGE_STORE_STREAM", "events")
        .refused_with(&[
            "environment PRELUDE_BRIDGE_STORE_STREAM: `store.stream`: the store is embedded",
        ]);
    // A secret without its store, which an empty variable does not name.
    Scene::without_file()
        .variable(STORE, "")
        .variable(PASSWORD, SECRET)
        .refused_with(&["it is set, but the store is embedded"]);
    Scene::without_file()
        .variable(PASSWORD, SECRET)
        .refused_with(&[
            "PRELUDE_BRIDGE_STORE_PASSWORD: it is set, but the store is embedded",
            "set `PRELUDE_BRIDGE_STORE`",
        ]);
    section("url = \"postgres://me@a\"")
        .variable(STORE_TOKEN, SECRET)
        .refused_with(&["PRELUDE_BRIDGE_STORE_TOKEN: it is set, but the store is PostgreSQL"]);
}

#[test]
fn a_store_that_is_overridden_takes_its_settings_along() {
    let of_nats = "url = \"nats://a\"\nstream = \"events\"\nreplicas = 1";
    let scene = section(of_nats).flag("store.url", "memory");
    assert_eq!(scene.resolved().config.store, Store::Memory);
    let scene = section(of_nats).variable(STORE, "postgres://me@b");
    assert_eq!(postgres(&scene).table, "prelude_bridge");
    let scene = Scene::without_file()
        .variable(STORE, "nats://a")
        .variable(STORE_TOKEN, SECRET)
        .flag("store.url", "embedded");
    assert_eq!(scene.resolved().config.store, Store::Embedded);
}

#[test]
fn a_file_is_judged_without_the_store_of_the_environment() {
    let alone = |scene: &Scene| {
        let sources = scene.sources.clone().without_setting_variables();
        resolve(&sources).map(|resolved| resolved.config.store)
    };
    let scene = Scene::new("")
        .variable(STORE, "nats://me@a")
        .variable("PRELUDE_BRIDGE_STORE_STREAM", "events")
        .variable(PASSWORD, SECRET);
    assert_eq!(alone(&scene).unwrap(), Store::Embedded);
    // A password that the file relies on is there for the check too.
    let scene = section("url = \"nats://a\"\nuser = \"me\"").variable(PASSWORD, SECRET);
    assert!(matches!(alone(&scene), Ok(Store::Nats(_))));
    let scene = scene.variable(STORE, "memory");
    assert!(matches!(alone(&scene), Ok(Store::Nats(_))));
}

#[test]
fn tls_is_asked_for_by_the_url_or_a_file_and_needs_both_halves_of_a_pair() {
    let files =
        "tls_ca_file = \"ca.pem\"\ntls_certificate_file = \"c.pem\"\ntls_key_file = \"k.pem\"";
    let scene = section(&format!("url = \"nats://a\"\n{files}"));
    let path = |name: &str| scene.path(name).into();
    let expected = StoreTls {
        authority: Some(path("ca.pem")),
        certificate: Some((path("c.pem"), path("k.pem"))),
    };
    assert_eq!(nats(&scene).tls, Some(expected));
    let config = scene.resolved().config;
    assert!(
        config
            .secret_files()
            .any(|file| file == Path::new(&scene.path("k.pem")))
    );
    for name in ["ca.pem", "c.pem", "k.pem"] {
        assert!(config.trusted_files().contains(&path(name)), "{name}");
    }
    let none = StoreTls::default();
    let scene = Scene::without_file().variable(STORE, "postgres://me@a/x?sslmode=verify-full");
    assert_eq!(postgres(&scene).tls, Some(none.clone()));
    let scene = Scene::without_file().variable(STORE, "tls://a");
    assert_eq!(nats(&scene).tls, Some(none));
    // Whether PostgreSQL's own tools would ask for it does not matter: other machines are far.
    let encrypted = |url: &str| {
        let scene = Scene::without_file().variable(STORE, url);
        postgres(&scene).tls.is_some()
    };
    for url in [
        "a/x",
        "127.0.0.1,a/x",
        "[2001:db8::1]/x",
        "localhost.example/x",
    ] {
        assert!(encrypted(&format!("postgres://me@{url}")), "{url}");
        assert!(
            !encrypted(&format!("postgres://me@{url}?sslmode=disable")),
            "{url}"
        );
    }
    for url in ["localhost/x", "127.0.0.2,[::1]/x", "[::ffff:127.0.0.1]/x"] {
        assert!(!encrypted(&format!("postgres://me@{url}")), "{url}");
        assert!(
            encrypted(&format!("postgres://me@{url}?sslmode=verify-full")),
            "{url}"
        );
    }

    section("url = \"nats://a\"\ntls_key_file = \"k.pem\"").refused_with(&[
        ":3: `store.tls_key_file`",
        "set `store.tls_certificate_file` too",
    ]);
    section("url = \"nats://a\"\ntls_certificate_file = \"c.pem\"")
        .refused_with(&["set `store.tls_key_file` too"]);
    section("url = \"postgres://me@a/x?sslmode=disable\"\ntls_ca_file = \"ca.pem\"").refused_with(
        &[
            ":3: `store.tls_ca_file`: the URL of the store has `sslmode=disable`",
            "`sslmode=verify-full`",
        ],
    );
}

#[test]
fn the_secrets_of_a_store_are_among_the_secret_files() {
    for lines in [
        "url = \"nats://a\"\nuser = \"me\"\npassword_file = \"secret.txt\"",
        "url = \"nats://a\"\ntoken_file = \"secret.txt\"",
        "url = \"nats://a\"\ncredentials_file = \"secret.txt\"",
        "url = \"postgres://me@a\"\npassword_file = \"secret.txt\"",
    ] {
        let scene = section(lines);
        let config = scene.resolved().config;
        let path = scene.path("secret.txt");
        assert!(
            config.secret_files().any(|file| file == Path::new(&path)),
            "{lines}"
        );
        assert!(config.trusted_files().contains(&path.into()), "{lines}");
    }
}

#[test]
fn the_file_of_a_secret_is_read_again() {
    let scene = section("url = \"postgres://me@a\"\npassword_file = \"secret.txt\"");
    let password = postgres(&scene).password.unwrap();
    let read = || {
        password
            .read_again()
            .map(|secret| secret.expose().to_owned())
    };
    assert_eq!(read().as_deref(), Ok(SECRET));
    fs::write(scene.path("secret.txt"), "the-next-one\n").unwrap();
    assert_eq!(read().as_deref(), Ok("the-next-one"));
    for (text, words) in [("\n", "is empty"), ("a\nb", "a second line")] {
        fs::write(scene.path("secret.txt"), text).unwrap();
        assert!(read().unwrap_err().contains(words), "{text:?}");
    }
    fs::remove_file(scene.path("secret.txt")).unwrap();
    let gone = read().unwrap_err();
    assert!(
        gone.contains("cannot be read") && !gone.contains("secret.txt"),
        "{gone}"
    );
}

#[cfg(unix)]
#[test]
fn a_secret_file_that_others_can_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = section("url = \"nats://a\"\ntoken_file = \"secret.txt\"");
    let open = fs::Permissions::from_mode(0o622);
    fs::set_permissions(scene.path("secret.txt"), open).unwrap();
    scene.refused_with(&[
        "`store.token_file`",
        "other users of this machine can write",
    ]);
}

#[test]
fn events_are_kept_as_long_as_ids_where_other_bridges_read_them() {
    let with = |url: &str, events: &str, ids: &str| {
        Scene::new(&format!(
            "[retention]\nage_max = \"{events}\"\nid_age_min = \"{ids}\"\n[store]\nurl = \"{url}\""
        ))
    };
    for url in ["nats://a", "postgres://me@a"] {
        assert_eq!(complaint(&with(url, "20d", "20d")), "");
        with(url, "19d23h", "20d").refused_with(&[
            "bridge.toml:2: `retention.age_max`: with the store on other machines",
            "(`retention.id_age_min`, 20d)",
            "raise `retention.age_max` to \"20d\" or more",
        ]);
    }
    assert_eq!(complaint(&with("embedded", "1d", "20d")), "");
    // The default of age_max is too short for these ids.
    Scene::without_file()
        .variable(STORE, "nats://a")
        .variable("PRELUDE_BRIDGE_RETENTION_ID_AGE_MIN", "31d")
        .refused_with(&["environment PRELUDE_BRIDGE_RETENTION_ID_AGE_MIN: `retention.id_age_min`"]);
}

#[test]
fn streams_and_tables_have_names_that_need_no_quotes() {
    let s63 = "s".repeat(63);
    let t48 = "t".repeat(48);
    for (url, key, good, bad) in [
        (
            "nats://a",
            "stream",
            vec!["a", "Events-1_x", &s63],
            vec![
                "",
                "a.b",
                "a b",
                "a*",
                "ä",
                "sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss",
            ],
        ),
        (
            "postgres://me@a",
            "table",
            vec!["t", "_t1", "events.t", &t48],
            vec![
                "",
                "1t",
                "T",
                "a.b.c",
                "a.",
                ".a",
                "a-b",
                "a\\\"b",
                "ttttttttttttttttttttttttttttttttttttttttttttttttt",
            ],
        ),
    ] {
        let with = |name: &str| section(&format!("url = \"{url}\"\n{key} = \"{name}\""));
        for name in good {
            assert_eq!(complaint(&with(name)), "", "{name}");
        }
        for name in bad {
            with(name).refused_with(&[
                &format!("bridge.toml:3: `store.{key}`: "),
                "is not a name of",
            ]);
        }
    }
}

#[test]
fn unknown_keys_of_the_section_name_the_nearest_known_one() {
    for (line, parts) in [
        (
            "tabel = \"x\"",
            ["bridge.toml:2: unknown key `store.tabel`", "`store.table`"],
        ),
        (
            "ulr = \"nats://a\"",
            ["unknown key `store.ulr`", "`store.url`"],
        ),
        (
            "replica = 3",
            ["unknown key `store.replica`", "`store.replicas`"],
        ),
        (
            "password_fiel = \"x\"",
            ["unknown key `store.password_fiel`", "`store.password_file`"],
        ),
    ] {
        section(line).refused_with(&parts);
    }
    Scene::new("[stroe]\nurl = \"nats://a\"")
        .refused_with(&["unknown key `stroe.url`", "`store.url`"]);
    Scene::new("sotre = \"memory\"").refused_with(&["unknown key `sotre`", "`store`"]);
    Scene::new("[[store]]\nurl = \"nats://a\"").refused_with(&["bridge.toml:1: `store`: "]);
    let scene = Scene::without_file()
        .variable("PRELUDE_BRIDGE_STORE_PASWORD", "x")
        .variable("PRELUDE_BRIDGE_STORE_REPLICA", "1");
    let warnings = scene.resolved().warnings.concat();
    assert!(
        warnings.contains("did you mean `PRELUDE_BRIDGE_STORE_PASSWORD`?"),
        "{warnings}"
    );
    assert!(
        warnings.contains("did you mean `PRELUDE_BRIDGE_STORE_REPLICAS`?"),
        "{warnings}"
    );
}

#[test]
fn what_is_shown_of_a_store_means_the_same_when_it_is_read_back() {
    for lines in [
        "url = \"tls://a:1,[::1]:2\"\nstream = \"events\"\nreplicas = 5\ncredentials_file = \"my.creds\"",
        "url = \"nats://a\"\ntoken_file = \"secret.txt\"\ntls_ca_file = \"ca.pem\"",
        "url = \"postgres://me@a,b:7/ev%20ents?sslmode=verify-full\"\ntable = \"s.t\"\nrequire_standby = false",
        "url = \"postgres://a?sslmode=disable\"\nuser = \"me\"\npassword_file = \"secret.txt\"",
    ] {
        let before = section(lines).resolved();
        let scene = Scene::new(&before.to_toml());
        // Of the first scene, which is gone, only the path of the secret matters.
        let shown = before.to_toml();
        if lines.contains("secret.txt") {
            assert!(shown.contains("/secret.txt\""), "{shown}");
            continue;
        }
        assert_eq!(
            scene.resolved().config.store,
            before.config.store,
            "{shown}"
        );
    }
    let scene = Scene::without_file()
        .variable(STORE, "nats://a")
        .variable("PRELUDE_BRIDGE_STORE_USER", "me")
        .variable(PASSWORD, SECRET);
    let before = scene.resolved();
    let again = Scene::new(&before.to_toml()).variable(PASSWORD, SECRET);
    assert_eq!(again.resolved().config.store, before.config.store);
}

#[test]
fn what_would_go_through_the_network_in_plain_text_is_warned_of() {
    let warnings = |url: &str| {
        let scene = Scene::without_file().variable(STORE, url);
        scene.resolved().warnings
    };
    for (url, words) in [
        (
            "nats://a",
            "events go to a:4222 in plain text: write `tls://`",
        ),
        (
            "nats://t@a",
            "so does the password or token of the store: write `tls://`",
        ),
        (
            "nats://me:x@127.0.0.1,192.0.2.1",
            "events go to 192.0.2.1:4222 in plain text, and so",
        ),
        (
            "postgres://me:x@a?sslmode=disable",
            "a:5432 in plain text: remove `sslmode=disable`",
        ),
    ] {
        let [warning] = warnings(url).try_into().unwrap();
        assert!(warning.contains(words), "{warning}");
    }
    for url in [
        "tls://t@a",
        "nats://t@127.0.0.1,[::1],localhost",
        "postgres://me:x@a",
        "postgres://me:x@localhost",
        "postgres://me:x@127.0.0.1?sslmode=disable",
    ] {
        assert_eq!(warnings(url), [""; 0], "{url}");
    }
}
