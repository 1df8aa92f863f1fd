//! Webhooks as a table for the terminal. What Prelude says is shown, and never steers the terminal.

use jiff::Timestamp;

use crate::{
    cli::exit::one_line,
    management::{Webhook, event_types},
};

/// A webhook that lacks no more of the documented types is described by those it lacks.
const MISSING_LISTED_MAX: usize = 2;

const HEAD: [&str; 6] = ["ID", "URL", "EVENTS", "ACTIVE", "LAST CODE", "AGE"];

/// One line for each webhook, below a head; a sentence where there is none.
pub(super) fn table(webhooks: &[Webhook], now: Timestamp) -> String {
    if webhooks.is_empty() {
        return "no webhooks: `prelude-bridge webhook setup --url URL` makes one\n".to_owned();
    }
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(webhooks.iter().map(|webhook| row(webhook, now)));
    let mut widths = [0; HEAD.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(webhook: &Webhook, now: Timestamp) -> [String; HEAD.len()] {
    let code = webhook.last_http_code.filter(|code| *code != 0);
    let date = webhook.last_http_code_date.as_deref();
    let date = date.filter(|_| code.is_some());
    [
        one_line(&webhook.id),
        one_line(&webhook.url),
        events(&webhook.events),
        if webhook.active { "yes" } else { "no" }.to_owned(),
        code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
        date.map_or_else(|| "-".to_owned(), |date| age(date, now)),
    ]
}

fn events(events: &[String]) -> String {
    let known = event_types().count();
    let is_missing = |known: &&str| !events.iter().any(|event| event == known);
    let missing: Vec<&str> = event_types().filter(is_missing).collect();
    let has_others = events.len() + missing.len() != known;
    match missing.as_slice() {
        _ if has_others => one_line(&events.join(",")),
        [] => format!("all {known}"),
        missing if missing.len() <= MISSING_LISTED_MAX => {
            format!("all {known} except {}", missing.join(","))
        }
        _ => one_line(&events.join(",")),
    }
}

/// How long ago a time was, in its largest unit; the text as it came where it is no time.
fn age(date: &str, now: Timestamp) -> String {
    let Ok(at) = date.parse::<Timestamp>() else {
        return one_line(date);
    };
    let seconds = now.duration_since(at).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_every_column_and_no_control_characters() {
        let mut webhook: Webhook = serde_json::from_str(
            r#"{"id":"web_1","url":"https://e.com/\u001b[2J","active":true,
                "events":["user.created","user.deleted"],"last_http_code":200,
                "last_http_code_date":"2026-11-20T08:00:00Z"}"#,
        )
        .unwrap();
        let now = "2026-11-20T08:05:30Z".parse().unwrap();
        let text = table(std::slice::from_ref(&webhook), now);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0].len(), 7, "{text}");
        let events = "user.created,user.deleted";
        let url = "https://e.com/\\u{1b}[2J";
        assert_eq!(lines[1], ["web_1", url, events, "yes", "200", "5m"]);
        webhook.events = event_types().map(str::to_owned).collect();
        webhook.last_http_code = Some(0);
        let text = table(std::slice::from_ref(&webhook), now);
        assert!(
            text.contains("all 9 ") && text.ends_with("-          -\n"),
            "{text}"
        );
        webhook.events.retain(|event| event.starts_with("user."));
        let text = table(std::slice::from_ref(&webhook), now);
        let except = "all 9 except step_up.hook_failed,migration.hook_failed";
        assert!(text.contains(except), "{text}");
        webhook.events.push("user.mood.changed".to_owned());
        let text = table(std::slice::from_ref(&webhook), now);
        assert!(
            text.contains("user.session.revoked,user.mood.changed"),
            "{text}"
        );
    }

    #[test]
    fn an_age_is_one_number_with_its_unit() {
        let now = "2026-11-20T08:00:00Z".parse().unwrap();
        for (date, shown) in [
            ("2026-11-20T07:59:59.5Z", "0s"),
            ("2026-11-20T07:00:01Z", "59m"),
            ("2026-11-19T08:00:01Z", "23h"),
            ("2026-11-01T08:00:00Z", "19d"),
            ("2026-11-20T09:00:00Z", "0s"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(age(date, now), shown, "{date}");
        }
    }
}
