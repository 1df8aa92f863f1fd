//! What follows from the declarations of settings: their bounds, the example file, and the page of the
//! documentation. After a change of a setting:
//!
//! ```sh
//! WRITE_GENERATED=1 cargo test --lib config::
//! ```

use std::env;

use super::{super::event_sources, *};

const EXAMPLE: &str = "prelude-bridge.example.toml";
const PAGE: &str = "docs/settings.md";
const BLOCK_BEGIN: &str = "<!-- Generated from the declarations in src/config. -->\n";
const BLOCK_END: &str = "<!-- End of what is generated. -->\n";

const HEADER: &str = "\
# The configuration of prelude-bridge, with every key, its default and its reason.
#
# A line that begins with `#key =` shows a default: remove the `#` to change it. Nothing has to be
# set but an app or another source. Use it with `prelude-bridge serve --config FILE`, check it with
# `prelude-bridge config check FILE`, and see what everything comes to with `config show`.
#
# A flag wins over a variable of the environment, a variable over this file. The variable of a key
# is PRELUDE_BRIDGE_ and its name, with its section: PRELUDE_BRIDGE_DATA_DIR,
# PRELUDE_BRIDGE_LIMITS_GRPC_STREAMS_MAX. Durations are written \"500ms\", \"15s\", \"10m\", \"2h\", \"30d\";
# sizes \"64KiB\", \"1MiB\", \"10GiB\". Relative paths are taken from the directory of this file.
";

const APPS: &str = r#"
# An app of Prelude Auth (formerly Session) whose deliveries are taken; one section for each app. One app
# needs no file: set PRELUDE_BRIDGE_APP_ID and PRELUDE_BRIDGE_VERIFICATION_TOKEN (or
# PRELUDE_BRIDGE_VERIFICATION_TOKEN_FILE), and if need be PRELUDE_BRIDGE_JWKS_URL,
# PRELUDE_BRIDGE_JWKS_FILE or PRELUDE_BRIDGE_PEM_FILE.
#[[apps]]
# As Prelude's dashboard shows it.
#id = "54e9ujn"

# The token that the webhook was registered with, at most 100 characters: in a file of its own ...
# Without either key, it is in tokens/APP_ID.txt in the data directory, where
# `prelude-bridge webhook setup` puts the one that it makes. While it is replaced, the new one is on the first
# line and the old one on the second: a running bridge reads the file again and accepts both.
#verification_token_file = "token.txt"

# ... or in a variable of the environment. One of the two, and never in this file.
#verification_token_env = "SHOP_VERIFICATION_TOKEN"

# Where the keys come from that sign its deliveries. The default is the app's own host; change the
# host if the app has a domain of its own. https only, except from this machine.
#jwks_url = "https://54e9ujn.session.prelude.dev/.well-known/jwks.json"

# Or a key set in a file. A running bridge reads it again when it changes ...
#jwks_file = "jwks.json"

# ... or public RSA keys in a PEM file, one or several blocks, and nothing else. Likewise read again ...
#pem_file = "key.pem"

# ... or in several PEM files, while a key is replaced. One of the four.
#pem_files = ["new.pem", "old.pem"]
"#;

const SOURCES: &str = r#"
# A source of events that is no app of Prelude Auth: Prelude Verify or Notify. One section for each.
# `[[apps]]` above is a source of kind auth. One source needs no file: set PRELUDE_BRIDGE_SOURCE_ID,
# PRELUDE_BRIDGE_SOURCE_KIND and PRELUDE_BRIDGE_PEM_FILE.
#[[sources]]
# "verify" or "notify": one event in each delivery, no activation and no verification token. Or "auth",
# with the keys of `[[apps]]`.
#kind = "verify"

# Your name for it, of letters, digits, `-` and `_`, which no app and no other source has. Its events
# have it as their `app_id`, and its deliveries come to /webhooks/ID: use that as the callback_url.
#id = "verify"

# The public key of the webhook signing key in Prelude's dashboard. One of `pem_file`, `pem_files`,
# `jwks_file` and `jwks_url`, as above, without a default.
#pem_file = "prelude.pem"
"#;

/// The settings with their sections, in the order of the file.
fn sections() -> Vec<(Section, Vec<Declared>)> {
    let mut sections: Vec<(Section, Vec<Declared>)> = Vec::new();
    for declared in declared() {
        match sections.last_mut() {
            Some((section, settings)) if *section == declared.name.section => {
                settings.push(declared);
            }
            _ => sections.push((declared.name.section, vec![declared])),
        }
    }
    sections
}

fn example() -> String {
    let mut text = HEADER.to_owned();
    for (section, settings) in sections() {
        if !section.name.is_empty() {
            text.push('\n');
            text.extend(section.about.iter().map(|line| format!("#{line}\n")));
            text.push_str(&format!("[{}]", section.name));
        }
        for Declared {
            name,
            default,
            bounds,
            ..
        } in settings
        {
            text.push('\n');
            text.extend(name.doc.iter().map(|line| format!("#{line}\n")));
            if let Some((min, max)) = bounds {
                text.push_str(&format!("# From {min} to {max}.\n"));
            }
            text.push_str(&format!("#{} = {default}\n", name.name));
        }
    }
    text + APPS + SOURCES
}

fn tables() -> String {
    let mut text = BLOCK_BEGIN.to_owned();
    for (section, settings) in sections() {
        if !section.name.is_empty() {
            let about: Vec<&str> = section.about.iter().map(|line| line.trim()).collect();
            text.push_str(&format!(
                "\n## `[{}]`\n\n{}\n",
                section.name,
                about.join("\n")
            ));
        }
        text.push_str("\n| key | default | from | to | |\n|---|---|---|---|---|\n");
        for declared in settings {
            let (min, max) = declared.bounds.clone().unwrap_or_default();
            let cells = [declared.default.clone(), min, max];
            let cells = cells.map(|cell| match cell.as_str() {
                "" => String::new(),
                cell => format!("`{}`", cell.replace('|', "\\|")),
            });
            let row = format!(
                "| `{}` | {} | {} |\n",
                declared.name.name,
                cells.join(" | "),
                declared.summary().replace('|', "\\|")
            );
            text.push_str(&row.replace("|  |", "| |").replace("|  |", "| |"));
        }
    }
    text + "\n" + BLOCK_END
}

/// Compares a committed file with what it should be, or writes it.
fn assert_generated(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if env::var_os("WRITE_GENERATED").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    for (index, (committed, expected)) in committed.lines().zip(expected.lines()).enumerate() {
        assert_eq!(committed, expected, "{name}:{}: see {}", index + 1, file!());
    }
    assert!(
        committed == expected,
        "{name} has another length: see {}",
        file!()
    );
}

#[test]
fn the_example_file_is_what_the_declarations_say() {
    assert_generated(EXAMPLE, &example());
}

#[test]
fn the_page_of_settings_is_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(path).unwrap();
    let (before, block) = page.split_once(BLOCK_BEGIN).unwrap();
    let (_, after) = block.split_once(BLOCK_END).unwrap();
    assert_generated(PAGE, &format!("{before}{}{after}", tables()));
}

#[test]
fn every_setting_has_a_reason_and_a_key_of_its_own() {
    let declared = declared();
    for (index, one) in declared.iter().enumerate() {
        let key = one.name.key;
        assert!(!one.summary().is_empty(), "{key}");
        assert!(
            declared
                .iter()
                .skip(index + 1)
                .all(|other| other.name.key != key),
            "{key}"
        );
    }
}

/// The example with every key in force: defaults are the lines that begin with `#key =`.
fn example_in_force() -> String {
    let is_key = |line: &str| {
        line.strip_prefix('#').is_some_and(|rest| {
            rest.starts_with("[[")
                || rest.split_once(" = ").is_some_and(|(key, _)| {
                    !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                })
        })
    };
    let example = example();
    let lines = example.lines().map(|line| match is_key(line) {
        true => line.trim_start_matches('#'),
        false => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_as_it_stands_changes_nothing() {
    let config = Scene::new(&example()).resolved().config;
    assert_eq!(config, Config::default());
}

#[test]
fn the_example_in_force_sets_every_default() {
    // Its app has both sources of tokens and all of keys, to show them: here it has one of each.
    let text = example_in_force();
    let (settings, app) = text.split_once("[[apps]]").unwrap();
    let (app, source) = app.split_once("[[sources]]").unwrap();
    let app = app.lines().filter(|line| {
        !["verification_token_env", "jwks_file", "pem_file"]
            .iter()
            .any(|key| line.starts_with(key))
    });
    let app = app.collect::<Vec<_>>().join("\n");
    let scene = Scene::new(&format!("{settings}[[apps]]{app}\n[[sources]]{source}"));
    fs::write(scene.path("prelude.pem"), "").unwrap();
    let resolved = scene.resolved();
    for setting in &resolved.settings {
        let is_written = matches!(setting.origin, Origin::File { .. });
        assert!(is_written, "`{}` is not in the example", setting.key());
    }
    let [app, source] = resolved.config.sources.as_slice() else {
        panic!("{resolved:?}");
    };
    assert_eq!(app.keys, KeySource::JwksUrl(default_jwks_url(&app.id)));
    assert_eq!((&*source.id, source.kind), ("verify", SourceKind::Verify));
    let pem = scene.path("prelude.pem").into();
    assert_eq!(source.keys, KeySource::PemFiles(vec![pem]));
    let mut config = resolved.config.clone();
    config.sources.clear();
    config.data_dir = Config::default().data_dir;
    assert_eq!(config, Config::default());
}

#[test]
fn the_example_has_every_key_of_a_source() {
    for key in event_sources::KEYS {
        assert!(
            [APPS, SOURCES].concat().contains(&format!("\n#{key} = ")),
            "`{key}` is not in the example"
        );
    }
}

/// A value one step beyond another: a byte, a millisecond, or one more or fewer.
fn beyond(value: &str, is_more: bool) -> String {
    let step = |count: u64| match is_more {
        true => (count + 1).to_string(),
        false => i128::from(count).saturating_sub(1).to_string(),
    };
    let text = value.trim_matches('"');
    match (text == value, parse_duration(text)) {
        (true, _) => step(text.parse().unwrap()),
        (false, Ok(duration)) => format!("{}ms", step(duration.as_millis().try_into().unwrap())),
        (false, Err(_)) => format!("{}B", step(parse_size(text).unwrap().0)),
    }
}

#[test]
fn every_setting_takes_what_is_within_its_bounds_and_nothing_beyond() {
    let mut bounded = 0;
    for declared in declared() {
        let key = declared.name.key;
        let with = |value: &str| {
            let scene = Scene::without_file().variable(&variable_of(key), value.trim_matches('"'));
            match key.starts_with("store.") {
                true => scene.variable("PRELUDE_BRIDGE_STORE", "nats://a"),
                false => scene,
            }
        };
        let Some((min, max)) = &declared.bounds else {
            continue;
        };
        bounded += 1;
        for value in [&declared.default, min, max] {
            let settings = with(value).resolved().settings;
            let taken = settings.iter().find(|setting| setting.key() == key);
            assert_eq!(&taken.unwrap().value, value, "{key}");
        }
        let help = format!("write a {} from {min} to {max}", declared.kind);
        for value in [beyond(min, false), beyond(max, true)] {
            let scene = with(&value);
            // Less than nothing is no value of any kind.
            let help = if value.starts_with('-') {
                "write a "
            } else {
                &help
            };
            scene.refused_with(&[&format!("`{key}`: "), help]);
        }
    }
    assert!(bounded > 50, "{bounded}");
}
