//! Owns how results are shown: a table for the terminal, Markdown and an SVG for people who read
//! about them elsewhere. Knows nothing of how they came about.

use std::fmt::Write as _;

use crate::{
    results::{Measured, Outcome, Results},
    work::Sample,
};

/// What the tables show of each work, in this order; what a work has not is left out.
const COLUMNS: [&str; 23] = [
    "deliveries/s",
    "batches/s",
    "events/s",
    "messages/s",
    "events/message",
    "engine CPU µs/event",
    "writers' CPU µs/event",
    "bridges' CPU µs/event",
    "consumers",
    "p50 µs",
    "p99 µs",
    "max µs",
    "CPU µs/delivery",
    "CPU µs/event",
    "CPU µs/batch",
    "bytes/delivery",
    "KiB/subscriber",
    "MiB",
    "ms/subscription",
    "server busy",
    "load busy",
    "sent late p99 µs",
    "seconds",
];

/// All of it as Markdown.
#[must_use]
pub fn markdown(results: &Results) -> String {
    let mut text = String::from("# prelude-bridge beside what a user would pick instead\n\n");
    let rounds = results.rounds;
    let _ = writeln!(
        text,
        "Medians of {rounds} alternating rounds; a ratio is taken within each round. How it is \
         measured, and what the figures leave out: `benches/peers/README.md`.\n"
    );
    for facts in [&results.machine, &results.versions] {
        for (name, value) in facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text.push('\n');
    }
    text.push_str("## Ratios\n\n");
    text.push_str(&ratios(results));
    if !results.failures.is_empty() {
        text.push_str("\n## Not measured\n\n");
        for failure in &results.failures {
            let _ = writeln!(text, "- {failure}");
        }
    }
    for measured in &results.works {
        let _ = write!(text, "\n## {}\n\n{}", measured.title, table(measured));
    }
    text
}

/// The table of ratios, for a README.
#[must_use]
pub fn ratios(results: &Results) -> String {
    let header = [
        "prelude-bridge ÷",
        "ratio",
        "range",
        "server CPU",
        "goal",
        "",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    let mut group = "";
    for outcome in &results.comparisons {
        if outcome.group != group {
            group = &outcome.group;
            let mut row = vec![format!("**{group}**")];
            row.resize(header.len(), String::new());
            rows.push(row);
        }
        let mark = match outcome.reached {
            Some(true) => "✓",
            Some(false) => "✗",
            None => "",
        };
        rows.push(vec![
            outcome.title.clone(),
            number(outcome.ratio),
            format!("{}–{}", number(outcome.least), number(outcome.greatest)),
            outcome.cpu_ratio.map(number).unwrap_or_default(),
            outcome.goal.clone().unwrap_or_default(),
            mark.into(),
        ]);
    }
    aligned(&rows)
}

fn table(measured: &Measured) -> String {
    let has = |column: &&&str| {
        let mut systems = measured.systems.iter();
        systems.any(|system| system.median.contains_key(**column))
    };
    let columns: Vec<&str> = COLUMNS.iter().filter(has).copied().collect();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(columns.iter().map(ToString::to_string));
    let is_rate = columns.contains(&"seconds");
    if is_rate {
        rows[0].push("bound by".into());
    }
    for system in &measured.systems {
        let mut row = vec![system.system.clone()];
        let values = columns.iter().map(|column| system.median.get(*column));
        row.extend(values.map(|value| value.copied().map(number).unwrap_or_default()));
        if is_rate {
            row.push(bound_by(&system.median).into());
        }
        rows.push(row);
    }
    aligned(&rows)
}

/// Whose core was busy all the time. Where it is not the server's, compare CPU time and not rates.
fn bound_by(median: &Sample) -> &'static str {
    let is_busy = |name: &str| median.get(name).is_some_and(|busy| *busy >= 0.9);
    match (is_busy("server busy"), is_busy("load busy")) {
        (true, _) => "server",
        (false, true) => "load",
        // The server waits for a disk, or the machine had other work.
        (false, false) => "neither",
    }
}

/// A Markdown table that can be read as it is.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let cell = if column == 0 {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            };
            let _ = write!(text, "| {cell} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let colon = if column == 0 { '-' } else { ':' };
                let _ = write!(text, "|{}{colon}", "-".repeat(width + 1));
            }
            text.push_str("|\n");
        }
    }
    text
}

/// Three significant digits, in a unit that keeps it short.
#[must_use]
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".into(),
        1e6.. => format!("{:.2} M", value / 1e6),
        1e4.. => format!("{:.1} k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

const WIDTH: f64 = 860.0;
const LABELS: f64 = 390.0;
const ROW: f64 = 20.0;
const RIGHT: f64 = 70.0;
/// The ends of the logarithmic scale.
const SCALE: (f64, f64) = (0.1, 100.0);

/// A plot of the ratios: to the right of the line the bridge is ahead, to the left behind.
#[must_use]
pub fn svg(results: &Results) -> String {
    let mut body = String::new();
    let mut y = 62.0;
    let mut group = "";
    for outcome in results.comparisons.iter().filter(|outcome| outcome.is_race) {
        if outcome.group != group {
            group = &outcome.group;
            y += 12.0;
            let _ = writeln!(
                body,
                r#"<text class="group" x="12" y="{y}">{}</text>"#,
                escape(group)
            );
            y += ROW;
        }
        bar(&mut body, outcome, y);
        y += ROW;
    }
    let height = y + 24.0;
    let mut grid = String::new();
    for times in [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0] {
        let x = place(times);
        let class = if times == 1.0 { "one" } else { "grid" };
        let bottom = y - 8.0;
        let _ = writeln!(
            grid,
            r#"<line class="{class}" x1="{x:.1}" y1="50" x2="{x:.1}" y2="{bottom}"/><text class="tick" x="{x:.1}" y="44">{times}×</text>"#
        );
    }
    let machine = |name: &str| results.machine.get(name).map_or("", String::as_str);
    let note = format!(
        "{}, {} cores, Linux {}; medians of {} alternating rounds, {}. | = goal",
        machine("CPU"),
        machine("cores"),
        machine("kernel"),
        results.rounds,
        machine("date")
    );
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="How many times better prelude-bridge is than each peer">
<style>
text {{ font: 12px system-ui, sans-serif; fill: #1f2328 }}
.title {{ font-size: 15px; font-weight: 600 }}
.group {{ font-weight: 600 }}
.label {{ text-anchor: end }}
.tick {{ text-anchor: middle; font-size: 10px; fill: #59636e }}
.note {{ font-size: 10px; fill: #59636e }}
.grid {{ stroke: #d1d9e0; stroke-width: 1 }}
.one {{ stroke: #59636e; stroke-width: 1.5 }}
.goal {{ stroke: #1f2328; stroke-width: 2 }}
.ahead {{ fill: #2da44e }}
.behind {{ fill: #bf8700 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #f0f6fc }}
.tick, .note {{ fill: #9198a1 }}
.grid {{ stroke: #3d444d }}
.one {{ stroke: #9198a1 }}
.goal {{ stroke: #f0f6fc }}
.ahead {{ fill: #3fb950 }}
.behind {{ fill: #d29922 }}
}}
</style>
<text class="title" x="12" y="22">How many times better prelude-bridge is</text>
{grid}{body}<text class="note" x="12" y="{}">{}</text>
</svg>
"#,
        height - 8.0,
        escape(&note)
    )
}

fn bar(body: &mut String, outcome: &Outcome, y: f64) {
    let (one, end) = (place(1.0), place(outcome.times_better));
    let class = if outcome.times_better >= 1.0 {
        "ahead"
    } else {
        "behind"
    };
    let (from, width) = (one.min(end), (end - one).abs().max(1.0));
    let top = y - 11.0;
    let _ = write!(
        body,
        r#"<text class="label" x="{:.0}" y="{y}">{}</text><rect class="{class}" x="{from:.1}" y="{top}" width="{width:.1}" height="13" rx="2"/>"#,
        LABELS - 12.0,
        escape(&outcome.title)
    );
    let mut right = one.max(end);
    if let Some(goal) = outcome.goal_times_better {
        let x = place(goal);
        right = right.max(x);
        let (top, bottom) = (y - 14.0, y + 5.0);
        let _ = write!(
            body,
            r#"<line class="goal" x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom}"/>"#
        );
    }
    let _ = writeln!(
        body,
        r#"<text x="{:.1}" y="{y}">{}×</text>"#,
        right + 5.0,
        number(outcome.times_better)
    );
}

/// Where a number of times is on the logarithmic scale.
fn place(times: f64) -> f64 {
    let (low, high) = (SCALE.0.ln(), SCALE.1.ln());
    let share = (times.max(1e-9).ln().clamp(low, high) - low) / (high - low);
    LABELS + share * (WIDTH - LABELS - RIGHT)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        Results {
            rounds: 5,
            comparisons: vec![Outcome {
                group: "Fan-out & <more>".into(),
                title: "nats-server core".into(),
                ratio: 4.0,
                least: 3.5,
                greatest: 4.5,
                cpu_ratio: Some(0.25),
                goal: Some("≥ 3.5".into()),
                reached: Some(true),
                times_better: 4.0,
                goal_times_better: Some(3.5),
                is_race: true,
            }],
            ..Results::default()
        }
    }

    #[test]
    fn numbers_are_short() {
        let short = [0.123, 1.234, 12.34, 123.4, 12_340.0, 1_234_000.0].map(number);
        assert_eq!(short, ["0.12", "1.23", "12.3", "123", "12.3 k", "1.23 M"]);
        assert_eq!(number(f64::NAN), "–");
    }

    #[test]
    fn the_table_of_ratios_has_a_row_for_each_group_and_comparison() {
        let text = ratios(&results());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].contains("**Fan-out & <more>**"));
        assert!(lines[3].contains("4.00") && lines[3].contains("≥ 3.5") && lines[3].contains('✓'));
        let widths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
    }

    #[test]
    fn the_plot_is_well_formed_and_escaped() {
        let svg = svg(&results());
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("Fan-out &amp; &lt;more&gt;"));
        assert_eq!(svg.matches("<rect").count(), 1);
        assert_eq!(svg.matches(r#"class="goal""#).count(), 1);
    }

    #[test]
    fn the_scale_is_logarithmic_and_ends() {
        let step = place(10.0) - place(1.0);
        assert!((place(100.0) - place(10.0) - step).abs() < 1e-6);
        assert_eq!(place(1e9), place(SCALE.1));
        assert_eq!(place(0.0), place(SCALE.0));
    }
}
