//! Owns the command that continues where this one was interrupted. Pure.

use std::borrow::Cow;

use clap::ValueEnum as _;

use super::{Args, printer::Written};

/// The command that continues after what was written; `None` if nothing was written yet or nothing is
/// left to do.
pub(super) fn command(args: &Args, written: &Written) -> Option<String> {
    let cursor = written.cursor.as_ref()?;
    let mut words = vec!["prelude-bridge".to_owned(), "tail".to_owned()];
    words.extend(["--server".to_owned(), quoted(&args.server).into_owned()]);
    for (name, path) in args.access.flags() {
        words.push(name.to_owned());
        words.extend(path.map(|path| quoted(&path.to_string_lossy()).into_owned()));
    }
    let mut flag = |name: &str, value: &str| {
        words.push(name.to_owned());
        words.push(quoted(value).into_owned());
    };
    for value in &args.types {
        flag("--type", value);
    }
    for value in &args.exclude_types {
        flag("--exclude-type", value);
    }
    for value in &args.apps {
        flag("--app", value);
    }
    for value in &args.users {
        flag("--user", value);
    }
    flag("--from", cursor);
    if let Some(count) = args.count {
        let left = count.checked_sub(written.events).filter(|&left| left > 0)?;
        flag("--count", &left.to_string());
    }
    if args.on_damaged == super::OnDamaged::Skip {
        flag("--on-damaged", "skip");
    }
    if let Some(output) = args.output.and_then(|output| output.to_possible_value()) {
        flag("--output", output.get_name());
    }
    if args.client_name != super::CLIENT_NAME {
        flag("--client-name", &args.client_name);
    }
    if args.color != super::Color::Auto
        && let Some(color) = args.color.to_possible_value()
    {
        flag("--color", color.get_name());
    }
    if args.utc {
        words.push("--utc".to_owned());
    }
    if args.until_caught_up {
        words.push("--until-caught-up".to_owned());
    }
    Some(words.join(" "))
}

/// The text, quoted as one word of a shell.
fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+=,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', r"'\''")).into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        let words = std::iter::once("tail").chain(words.iter().copied());
        Command::try_parse_from(words).unwrap().args
    }

    fn written(events: u64) -> Written {
        Written {
            cursor: Some("AQcursor".into()),
            events,
        }
    }

    #[test]
    fn the_command_asks_for_the_same_from_the_place_on() {
        let args = args(&[
            "--server=bridge:50051",
            "--token-file=t.txt",
            "--token-over-plain-text",
            "--type=user.session.*",
            "--type=user.created",
            "--exclude-type=user.session.revoked",
            "--app=54e9ujn",
            "--user=it's me",
            "--since=10m",
            "--count=10",
            "--until-caught-up",
            "--on-damaged=skip",
            "--output=json",
            "--client-name=audit",
            "--color=never",
            "--utc",
        ]);
        assert_eq!(
            command(&args, &written(4)).unwrap(),
            "prelude-bridge tail --server http://bridge:50051 \
             --token-file t.txt --token-over-plain-text --type 'user.session.*' \
             --type user.created --exclude-type user.session.revoked --app 54e9ujn \
             --user 'it'\\''s me' --from AQcursor --count 6 --on-damaged skip --output json --client-name audit \
             --color never --utc --until-caught-up"
        );
    }

    #[test]
    fn there_is_no_command_without_a_place_or_without_a_rest() {
        assert_eq!(command(&args(&[]), &Written::default()), None);
        assert_eq!(command(&args(&["--count=4"]), &written(4)), None);
    }

    #[test]
    fn what_was_not_said_is_not_said_again() {
        assert_eq!(
            command(&args(&["--last=5"]), &written(4)).unwrap(),
            "prelude-bridge tail --server http://127.0.0.1:50051 --from AQcursor"
        );
    }
}
