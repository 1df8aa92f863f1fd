//! Sources of kind verify and notify, beside apps: what they need, and what is refused.

use super::*;

/// A scene with `key.pem` and `old.pem`, which nothing here parses.
fn scene(file: &str) -> Scene {
    let scene = Scene::new(file);
    for name in ["key.pem", "old.pem"] {
        fs::write(scene.path(name), "").unwrap();
    }
    scene
}

fn source(kind: &str, rest: &str) -> String {
    format!("[[sources]]\nid = \"two\"\nkind = \"{kind}\"\n{rest}\n")
}

const PEM: &str = "pem_file = \"key.pem\"";
const TOKEN_LINE: &str = "verification_token_file = \"token.txt\"";

fn ids(config: &Config) -> Vec<(&str, SourceKind)> {
    let sources = config.sources.iter();
    sources.map(|source| (&*source.id, source.kind)).collect()
}

#[test]
fn sources_of_all_kinds_stand_beside_apps() {
    let others = [("three", "verify"), ("four", "notify"), ("five", "auth")];
    let others = others.map(|(id, kind)| {
        let rest = if kind == "auth" { TOKEN_LINE } else { PEM };
        source(kind, rest).replace("two", id)
    });
    // Apps come first, wherever they are.
    let scene = scene(&(others.concat() + &app(TOKEN_LINE)));
    let config = scene.resolved().config;
    let expected = [
        ("one", SourceKind::Auth),
        ("five", SourceKind::Auth),
        ("three", SourceKind::Verify),
        ("four", SourceKind::Notify),
    ];
    assert_eq!(ids(&config), expected);
    for source in &config.sources {
        let is_app = source.kind == SourceKind::Auth;
        assert_eq!(source.activation.is_some(), is_app, "{source:?}");
    }
    assert_eq!(
        list_sources(&config.sources),
        "apps: one, five; sources: three (verify), four (notify)"
    );
    assert_eq!(list_sources(&config.sources[3..]), "sources: four (notify)");
}

#[test]
fn keys_are_in_one_pem_file_or_several_or_in_a_key_set() {
    let keys = |line: &str| {
        let scene = scene(&source("verify", line));
        let [source] = scene.resolved().config.sources.try_into().unwrap();
        let files = source.keys.files().iter();
        let files = files.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        (source.keys.clone(), files.collect::<Vec<_>>())
    };
    let (one, files) = keys(PEM);
    assert!(matches!(one, KeySource::PemFiles(_)));
    assert_eq!(files, ["key.pem"]);
    let (_, files) = keys("pem_files = [\"key.pem\", \"old.pem\"]");
    assert_eq!(files, ["key.pem", "old.pem"]);
    assert!(matches!(
        keys("jwks_file = \"key.pem\"").0,
        KeySource::JwksFile(_)
    ));
    let (url, files) = keys("jwks_url = \"https://keys.example/jwks.json\"");
    assert!(matches!(url, KeySource::JwksUrl(_)) && files.is_empty());
    // A comma does not separate paths.
    let scene = Scene::new(&source("notify", "pem_files = [\"a,b.pem\"]"));
    fs::write(scene.path("a,b.pem"), "").unwrap();
    assert_eq!(scene.resolved().config.sources[0].keys.files().len(), 1);
}

#[test]
fn a_key_in_place_of_its_file_is_refused_and_not_repeated() {
    let private = r"-----BEGIN PRIVATE KEY-----\nMIIEhush\n-----END PRIVATE KEY-----\n";
    for line in [
        format!("pem_file = \"{private}\""),
        format!("jwks_file = \"{private}\""),
        format!("pem_files = [\"{private}\", \"key.pem\", \"{private}\"]"),
    ] {
        let scene = scene(&source("verify", &line));
        let faults = scene.faults().concat();
        assert!(faults.contains("it is the key itself"), "{faults}");
        assert!(
            !faults.contains("MIIE") && !faults.contains("BEGIN"),
            "{faults}"
        );
    }
    let scene = Scene::without_file()
        .variable("PRELUDE_BRIDGE_SOURCE_ID", "two")
        .variable("PRELUDE_BRIDGE_SOURCE_KIND", "verify")
        .variable("PRELUDE_BRIDGE_PEM_FILE", &private.replace(r"\n", "\n"));
    scene.refused_with(&[
        "PRELUDE_BRIDGE_PEM_FILE",
        "it is the key itself",
        "name the file",
    ]);
    assert!(!scene.faults().concat().contains("MIIE"));
}

#[test]
fn sources_that_cannot_be_meant_say_what_to_write() {
    let long = "i".repeat(SOURCE_ID_CHARS_MAX + 1);
    let many: Vec<String> = (0..33).map(|number| format!("\"{number}.pem\"")).collect();
    let many = format!("pem_files = [{}]", many.join(", "));
    let whole = |rest: &str| source("verify", &format!("{PEM}\n{rest}"));
    for (file, parts) in [
        (
            format!("[[sources]]\nid = \"two\"\n{PEM}"),
            [
                ":1: `sources.kind`: the source `two` has no kind",
                "\"notify\"",
            ],
        ),
        (
            source("verfy", PEM),
            [
                ":3: `sources.kind`: `verfy` is not a kind",
                "did you mean \"verify\"?",
            ],
        ),
        (
            source("session", PEM),
            ["`session` is not a kind", "write `kind = \"auth\"`"],
        ),
        (
            format!("[[sources]]\nkind = \"verify\"\n{PEM}"),
            [":1: `sources.id`: it is missing", "`app_id`"],
        ),
        (
            whole("").replace("two", "a/b"),
            [
                ":2: `sources.id`: `/` cannot be in an id",
                "letters, digits",
            ],
        ),
        (
            whole("").replace("two", &long),
            ["longer than 63", "such as `verify`"],
        ),
        (
            whole(TOKEN_LINE),
            [
                ":5: `sources.verification_token_file`: a source of kind verify has no activation",
                "remove it",
            ],
        ),
        (
            whole("verification_token_env = \"X\""),
            [":5: `sources.verification_token_env`", "remove it"],
        ),
        (
            source("notify", ""),
            [":1: `sources`: the source `two` has no keys", "dashboard"],
        ),
        (
            whole("pem_files = [\"old.pem\"]"),
            [
                ":5: `sources`: the source `two` has more than one source of keys",
                "into `pem_files`",
            ],
        ),
        (
            whole("jwks_file = \"old.pem\""),
            ["more than one source of keys", "keep one"],
        ),
        (
            source("verify", "pem_files = []"),
            [":4: `sources.pem_files`: the list is empty", "at least one"],
        ),
        (
            source("verify", "pem_files = [\"key.pem\", \"key.pem\"]"),
            ["key.pem twice", "each file once"],
        ),
        (source("verify", &many), ["more than 32 files", "in use"]),
        (
            source("verify", "pem_files = [\"key.pem\", \"no.pem\"]"),
            [
                "`sources.pem_files`: no.pem cannot be read",
                "check the path",
            ],
        ),
        (
            source("verify", "pem_files = [\"\"]"),
            ["the path is empty", "check the path"],
        ),
        (
            source("verify", "pem_file = \"\""),
            ["the path is empty", "check the path"],
        ),
        (
            source("verify", "pem_files = \"key.pem\""),
            [
                "`sources.pem_files`: the value is not an array",
                "`pem_file` for one",
            ],
        ),
        (
            source("verify", "pem_files = [1]"),
            ["the value is not an array of strings", "pem_files = ["],
        ),
        (
            source("verify", "pem_file = [\"key.pem\"]"),
            [
                "`sources.pem_file`: the value is an array",
                "write `pem_files`",
            ],
        ),
        (
            whole("pem_fil = \"x\""),
            [
                ":5: unknown key `sources.pem_fil`",
                "did you mean `pem_file`?",
            ],
        ),
        (
            whole("knd = \"verify\""),
            [
                "unknown key `sources.knd`",
                "did you mean `kind`? The keys of `[[sources]]`",
            ],
        ),
        (
            whole("verification_token = \"x\""),
            [
                "`sources.verification_token`: a token does not belong",
                "`verification_token_file",
            ],
        ),
        (
            "sources = [\"two\"]".to_owned(),
            ["an item of `sources` is not a table", "`[[sources]]`"],
        ),
        (
            format!("[sources]\nid = \"two\"\n{}", app(TOKEN_LINE)),
            [
                "`sources`: it is not a list of tables",
                "write `[[sources]]`",
            ],
        ),
        (
            format!("[[source]]\nid = \"two\"\n{}", app(TOKEN_LINE)),
            ["unknown key `source`", "did you mean `sources`?"],
        ),
        (
            app(&format!("{TOKEN_LINE}\nkind = \"verify\"")),
            [
                ":4: `apps.kind`: an app is always of kind auth",
                "`[[sources]]` instead",
            ],
        ),
        (
            source("auth", ""),
            [
                "`sources`: the source `two` has no verification token",
                "webhook setup",
            ],
        ),
    ] {
        let scene = scene(&file);
        scene.refused_with(&parts);
    }
}

#[test]
fn an_id_is_unique_over_apps_and_sources() {
    let both = app(TOKEN_LINE) + &source("verify", PEM).replace("two", "one");
    scene(&both).refused_with(&[
        "bridge.toml:5: `sources.id`: the app `one` is already at bridge.toml:2",
        "an id of its own",
    ]);
    scene(&source("verify", PEM).repeat(2))
        .refused_with(&["`sources.id`: the source `two` is already at bridge.toml:2"]);
}

/// A scene without a file, with these variables; a value of `PEM` is the path of a key.
fn environment(variables: &[(&str, &str)]) -> Scene {
    let mut scene = scene("");
    scene.sources.file = None;
    for (name, value) in variables {
        let value = match *value {
            "PEM" => scene.path("key.pem"),
            value => value.to_owned(),
        };
        scene = scene.variable(&format!("PRELUDE_BRIDGE_{name}"), &value);
    }
    scene
}

#[test]
fn one_source_needs_no_file() {
    let scene = environment(&[
        ("SOURCE_ID", "calls"),
        ("SOURCE_KIND", "verify"),
        ("PEM_FILE", "PEM"),
    ]);
    let config = scene.resolved().config;
    assert_eq!(ids(&config), [("calls", SourceKind::Verify)]);
    assert_eq!(
        config.sources[0].keys.files(),
        [PathBuf::from(scene.path("key.pem"))]
    );
    let app = environment(&[
        ("APP_ID", "one"),
        ("VERIFICATION_TOKEN", TOKEN),
        ("PEM_FILE", "PEM"),
    ]);
    let config = app.resolved().config;
    assert!(matches!(config.sources[0].keys, KeySource::PemFiles(_)));
}

#[test]
fn variables_that_cannot_be_meant_say_what_to_set() {
    for (variables, parts) in [
        (
            &[("SOURCE_ID", "calls"), ("PEM_FILE", "PEM")][..],
            [
                "environment PRELUDE_BRIDGE_SOURCE_ID: ",
                "set `PRELUDE_BRIDGE_SOURCE_KIND`",
            ],
        ),
        (
            &[
                ("SOURCE_ID", "calls"),
                ("SOURCE_KIND", "notfy"),
                ("PEM_FILE", "PEM"),
            ],
            [
                "PRELUDE_BRIDGE_SOURCE_KIND: `sources.kind`: `notfy`",
                "did you mean \"notify\"?",
            ],
        ),
        (
            &[("SOURCE_ID", "calls"), ("SOURCE_KIND", "notify")],
            [
                "the source `calls` has no keys",
                "set `PRELUDE_BRIDGE_PEM_FILE`",
            ],
        ),
        (
            &[("SOURCE_KIND", "verify")],
            [
                "SOURCE_KIND: it is set, but `PRELUDE_BRIDGE_SOURCE_ID` is not",
                "set `",
            ],
        ),
        (
            &[("PEM_FILE", "PEM")],
            [
                "PEM_FILE: it is set, but `PRELUDE_BRIDGE_APP_ID` or `PRELUDE_BRIDGE_SOURCE_ID` is not",
                "unset it",
            ],
        ),
        (
            &[("SOURCE_ID", "calls"), ("APP_ID", "one")],
            [
                "SOURCE_ID: it is set, and `PRELUDE_BRIDGE_APP_ID` too",
                "into a file",
            ],
        ),
        (
            &[
                ("APP_ID", "one"),
                ("VERIFICATION_TOKEN", TOKEN),
                ("SOURCE_KIND", "verify"),
            ],
            [
                "SOURCE_KIND: it is set, and so is `PRELUDE_BRIDGE_APP_ID`",
                "instead",
            ],
        ),
        (
            &[
                ("SOURCE_ID", "calls"),
                ("SOURCE_KIND", "verify"),
                ("PEM_FILE", "PEM"),
                ("VERIFICATION_TOKEN", TOKEN),
            ],
            [
                "VERIFICATION_TOKEN: `sources.verification_token_env`: a source of kind verify",
                "remove",
            ],
        ),
        (
            &[
                ("SOURCE_ID", "calls"),
                ("SOURCE_KIND", "verify"),
                ("PEM_FILE", "PEM"),
                ("JWKS_FILE", "PEM"),
            ],
            ["more than one source of keys", "keep one"],
        ),
    ] {
        environment(variables).refused_with(&parts);
    }
}

#[test]
fn the_source_of_the_environment_wins_over_the_same_one_of_the_file() {
    let variable = |scene: Scene, name: &str, value: &str| {
        scene.variable(&format!("PRELUDE_BRIDGE_{name}"), value)
    };
    let file = source("verify", "pem_files = [\"key.pem\", \"old.pem\"]");
    // Its keys, and its kind.
    let of_file = scene(&file);
    let pem = of_file.path("old.pem");
    let of_file = variable(of_file, "SOURCE_ID", "two");
    let of_file = variable(variable(of_file, "PEM_FILE", &pem), "SOURCE_KIND", "notify");
    let config = of_file.resolved().config;
    assert_eq!(ids(&config), [("two", SourceKind::Notify)]);
    assert_eq!(config.sources[0].keys.files(), [PathBuf::from(&pem)]);
    // Its id alone changes nothing.
    let config = variable(scene(&file), "SOURCE_ID", "two").resolved().config;
    assert_eq!(config.sources[0].keys.files().len(), 2);
    // But it has to be the same kind of section.
    variable(scene(&file), "APP_ID", "two").refused_with(&[
        "PRELUDE_BRIDGE_APP_ID: it is auth here, but of kind verify at bridge.toml:1",
        "set `PRELUDE_BRIDGE_SOURCE_ID`",
    ]);
    let of_app = variable(scene(&app(TOKEN_LINE)), "SOURCE_ID", "one");
    assert_eq!(ids(&of_app.resolved().config), [("one", SourceKind::Auth)]);
    variable(of_app, "SOURCE_KIND", "verify")
        .refused_with(&["it is verify here, but of kind auth at bridge.toml:1"]);
}

#[test]
fn what_is_shown_of_sources_means_the_same_when_it_is_read_back() {
    let file = [
        source("notify", "pem_files = [\"key.pem\", \"old.pem\"]"),
        source("verify", PEM).replace("two", "three"),
        source("auth", TOKEN_LINE).replace("two", "four"),
        app(TOKEN_LINE),
    ];
    let before = scene(&file.concat());
    let before = (before.resolved(), before);
    let again = Scene::new(&before.0.to_toml());
    let mut after = again.resolved();
    for (one, other) in after
        .config
        .sources
        .iter_mut()
        .zip(&before.0.config.sources)
    {
        one.origin = other.origin.clone();
    }
    assert_eq!(after.config.sources, before.0.config.sources);
    let json = before.0.to_json();
    assert_eq!(json["apps"].as_array().unwrap().len(), 2);
    assert_eq!(json["sources"][0]["kind"], "notify");
    assert_eq!(json["sources"][0]["pem_files"].as_array().unwrap().len(), 2);
    assert_eq!(json["sources"][1]["pem_file"], before.1.path("key.pem"));
    assert!(json["sources"][1].get("verification_token").is_none());
}

#[test]
fn key_files_of_sources_are_trusted_files_and_no_secrets() {
    let file = source("verify", "pem_files = [\"key.pem\", \"old.pem\"]");
    let scene = scene(&file);
    let config = scene.resolved().config;
    let trusted = config.trusted_files();
    for name in ["key.pem", "old.pem"] {
        assert!(trusted.contains(&scene.path(name).into()), "{trusted:?}");
    }
    assert_eq!(config.secret_files().count(), 0);
}

#[test]
fn planned_sources_have_their_kinds() {
    let scene = scene(&(source("verify", PEM) + "[[apps]]\nid = \"one\"\n"));
    let planned = planned_sources(&scene.sources).unwrap();
    let planned: Vec<_> = planned.iter().map(|one| (&*one.id, one.kind)).collect();
    assert_eq!(
        planned,
        [("one", SourceKind::Auth), ("two", SourceKind::Verify)]
    );
}

#[test]
fn the_sections_of_the_page_are_valid() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sources.md");
    let page = fs::read_to_string(page).unwrap();
    let mut blocks = page
        .split("```")
        .filter_map(|block| block.strip_prefix("toml\n"));
    let (sections, keys) = (blocks.next().unwrap(), blocks.next().unwrap());
    let named = |text: &str| {
        let scene = scene(text);
        for name in ["prelude.pem", "new.pem"] {
            fs::write(scene.path(name), "").unwrap();
        }
        scene.resolved().config
    };
    let expected = [
        ("verify", SourceKind::Verify),
        ("notify", SourceKind::Notify),
    ];
    assert_eq!(ids(&named(sections)), expected);
    assert_eq!(
        named(&source("verify", keys)).sources[0].keys.files().len(),
        2
    );
}
