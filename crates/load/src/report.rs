//! Owns how figures are summed up and shown: medians over the runs, as JSON lines or as tables.
//! Knows nothing of how they came about.

use std::{fmt::Write as _, time::Duration};

use anstyle::{Effects, Style};
use hdrhistogram::Histogram;
use serde::{Serialize, Serializer, ser::SerializeMap as _};

const BOLD: Style = Style::new().effects(Effects::BOLD);
const DIM: Style = Style::new().effects(Effects::DIMMED);

/// Latencies are kept to three digits, up to this.
const LATENCY_MAX: Duration = Duration::from_secs(100);

/// Latencies in microseconds.
pub type Latencies = Histogram<u64>;

/// Without any yet.
#[must_use]
pub fn histogram() -> Latencies {
    let max = u64::try_from(LATENCY_MAX.as_micros()).unwrap_or(u64::MAX);
    #[expect(
        clippy::expect_used,
        reason = "constants that the tests have seen accepted"
    )]
    Histogram::new_with_max(max, 3).expect("bounds that a histogram can have")
}

/// What a figure is in; shown only to people, as the names say it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Something a second, or a number of something.
    Number,
    Seconds,
    Micros,
    Bytes,
    /// Of the CPU time that there was.
    Share,
}

/// The figures that say which side was the limit.
pub(super) const SERVER_CPU_SHARE: &str = "server_cpu_share";
pub(super) const LOAD_CPU_SHARE: &str = "load_cpu_share";
pub(super) const OTHERS_CPU_SHARE: &str = "others_cpu_share";

/// From this share of a side's CPUs on it has none left: ticks, and what the kernel does in nobody's
/// name, keep it below 1.
const BUSY_SHARE: f64 = 0.9;

/// From this share of all CPUs on, other programs spoil the figures.
const OTHERS_SHARE: f64 = 0.15;

/// One thing that is measured in each run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    /// In JSON: stable.
    pub(super) name: &'static str,
    /// In tables, above its column. Empty for what only JSON has.
    pub(super) title: &'static str,
    pub(super) unit: Unit,
}

/// What one run measured; `None` where this system does not tell.
pub(super) type Measured = Vec<(Figure, Option<f64>)>;

/// A setting, or something that follows from the figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A name.
    Text(String),
    /// A number.
    Count(u64),
}

impl Value {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn count(count: usize) -> Self {
        Self::Count(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

/// A figure over all runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The one in the middle; of an even number of runs the mean of the two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of nothing there is none.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = *values.get(values.len() / 2)?;
        let lower = *values.get((values.len() - 1) / 2)?;
        Some(Self {
            median: f64::midpoint(lower, upper),
            min,
            max,
        })
    }
}

/// What was measured with one group of settings.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which measurement.
    pub bench: &'static str,
    settings: Vec<(&'static str, Value)>,
    runs: u32,
    figures: Vec<(Figure, Option<Summary>)>,
}

impl Line {
    pub(super) fn new(
        bench: &'static str,
        settings: Vec<(&'static str, Value)>,
        runs: u32,
    ) -> Self {
        Self {
            bench,
            settings,
            runs,
            figures: Vec::new(),
        }
    }

    /// Sums up runs that measured the same figures.
    pub(super) fn sum_up(mut self, runs: &[Measured]) -> Self {
        let Some(first) = runs.first() else {
            return self;
        };
        for (index, (figure, _)) in first.iter().enumerate() {
            let values = runs
                .iter()
                .map(|run| run.get(index).and_then(|(_, value)| *value));
            let values: Option<Vec<f64>> = values.collect();
            self.figures.push((*figure, values.and_then(Summary::of)));
        }
        if let Some(limit) = self.limit() {
            self.settings.push(("limit", Value::text(limit)));
        }
        self
    }

    /// The summary of the figure with this name.
    #[must_use]
    pub fn summary(&self, name: &str) -> Option<Summary> {
        let found = self.figures.iter().find(|(figure, _)| figure.name == name);
        found.and_then(|(_, summary)| *summary)
    }

    /// Which side had no more CPU to give.
    fn limit(&self) -> Option<&'static str> {
        let busy = |name| Some(self.summary(name)?.median >= BUSY_SHARE);
        Some(match (busy(SERVER_CPU_SHARE)?, busy(LOAD_CPU_SHARE)?) {
            (true, true) => "both",
            (true, false) => "server",
            (false, true) => "load",
            (false, false) if self.others().is_some() => "others",
            (false, false) => "neither",
        })
    }

    /// How much of the CPUs other programs had, if it was too much.
    pub(super) fn others(&self) -> Option<f64> {
        let share = self.summary(OTHERS_CPU_SHARE)?.median;
        (share >= OTHERS_SHARE).then_some(share)
    }

    /// The figures that are shown to people.
    fn shown(&self) -> impl Iterator<Item = &(Figure, Option<Summary>)> {
        let is_shown = |(figure, _): &&(Figure, _)| !figure.title.is_empty();
        self.figures.iter().filter(is_shown)
    }
}

/// One object, with the settings first.
impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("bench", self.bench)?;
        for (name, value) in &self.settings {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("runs", &self.runs)?;
        for (figure, summary) in &self.figures {
            map.serialize_entry(figure.name, summary)?;
        }
        map.end()
    }
}

/// Writes lines as tables, a new one when the measurement changes.
#[derive(Debug, Default)]
pub struct Table {
    bench: Option<&'static str>,
}

/// The width of a column with figures: a range fits.
const FIGURE_CHARS: usize = 13;
/// The width of a column with a setting.
const SETTING_CHARS: usize = 12;

impl Table {
    /// The text of a line, below a new head where one is needed.
    pub fn line(&mut self, line: &Line) -> String {
        if line.figures.is_empty() {
            return facts(line);
        }
        let mut text = String::new();
        if self.bench != Some(line.bench) {
            self.bench = Some(line.bench);
            let _ = write!(text, "\n{BOLD}{}{BOLD:#}\n", line.bench);
            for row in head(line) {
                let _ = writeln!(text, "{DIM}{row}{DIM:#}");
            }
        }
        let settings = line.settings.iter().map(|(_, value)| show_value(value));
        let medians = line.cells(|summary, unit| show(summary.median, unit));
        let _ = writeln!(text, "{}", row(settings, medians));
        if line.runs > 1 {
            let nothing = line.settings.iter().map(|_| String::new());
            let ranges = line.cells(|summary, unit| {
                let (min, max) = (show(summary.min, unit), show(summary.max, unit));
                format!("{min}–{max}")
            });
            let _ = writeln!(text, "{DIM}{}{DIM:#}", row(nothing, ranges));
        }
        text
    }
}

impl Line {
    fn cells(&self, show: impl Fn(&Summary, Unit) -> String) -> impl Iterator<Item = String> {
        self.shown().map(move |(figure, summary)| {
            let cell = summary.as_ref().map(|summary| show(summary, figure.unit));
            cell.unwrap_or_else(|| "n/a".to_owned())
        })
    }
}

/// What is the same for all that follows.
fn facts(line: &Line) -> String {
    let facts = line.settings.iter().map(|(name, value)| {
        let name = name.replace('_', " ");
        format!("{DIM}{name:<SETTING_CHARS$}{DIM:#}{}\n", show_value(value))
    });
    let runs = match line.runs {
        1 => "one run".to_owned(),
        runs => format!("{runs} runs: medians, and below them the smallest and the largest"),
    };
    format!(
        "{}{DIM}{:<SETTING_CHARS$}{DIM:#}{runs}\n",
        facts.collect::<String>(),
        "figures"
    )
}

fn row(settings: impl Iterator<Item = String>, figures: impl Iterator<Item = String>) -> String {
    let settings = settings.map(|cell| format!("{cell:<SETTING_CHARS$}"));
    let figures = figures.map(|cell| format!("{cell:>FIGURE_CHARS$}"));
    settings
        .chain(figures)
        .collect::<String>()
        .trim_end()
        .to_owned()
}

/// The titles, broken into rows that fit their columns, the last row full.
fn head(line: &Line) -> Vec<String> {
    let settings = line
        .settings
        .iter()
        .map(|(name, _)| broken(name, SETTING_CHARS));
    let settings: Vec<_> = settings.collect();
    let figures = line
        .shown()
        .map(|(figure, _)| broken(figure.title, FIGURE_CHARS));
    let figures: Vec<_> = figures.collect();
    let height = settings
        .iter()
        .chain(&figures)
        .map(Vec::len)
        .max()
        .unwrap_or(0);
    let cell = |rows: &Vec<String>, at: usize| {
        let above = height - rows.len();
        at.checked_sub(above)
            .and_then(|at| rows.get(at))
            .cloned()
            .unwrap_or_default()
    };
    (0..height)
        .map(|at| {
            let settings = settings.iter().map(|rows| cell(rows, at));
            row(settings, figures.iter().map(|rows| cell(rows, at)))
        })
        .collect()
}

/// Words in rows that leave one character to the neighbour.
fn broken(title: &str, chars: usize) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for word in title.split(' ') {
        match rows.last_mut() {
            Some(row) if row.chars().count() + 1 + word.chars().count() < chars => {
                row.push(' ');
                row.push_str(word);
            }
            Some(_) | None => rows.push(word.to_owned()),
        }
    }
    rows
}

fn show_value(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Count(count) => count.to_string(),
    }
}

/// Three digits and the unit: what is worth reading of a measurement.
fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Number => scaled(value, 1e3, &["", "k", "M", "G"]),
        Unit::Bytes => scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB"]),
        Unit::Micros => scaled(value, 1e3, &["µs", "ms", "s"]),
        Unit::Seconds => format!("{}s", digits(value)),
        Unit::Share => format!("{:.0}%", value * 100.0),
    }
}

fn scaled(mut value: f64, factor: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next();
    // Where three digits would round up to the next unit, it is taken.
    while value.abs() >= factor.min(999.5) && units.len() > 0 {
        value /= factor;
        unit = units.next();
    }
    format!("{}{}", digits(value), unit.unwrap_or(&""))
}

fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Figure = Figure {
        name: "deliveries_per_second",
        title: "deliveries per second",
        unit: Unit::Number,
    };
    const SERVER: Figure = Figure {
        name: "server_cpu_share",
        title: "server CPU",
        unit: Unit::Share,
    };
    const LOAD: Figure = Figure {
        name: "load_cpu_share",
        title: "load CPU",
        unit: Unit::Share,
    };

    fn line(runs: &[[f64; 3]]) -> Line {
        let runs: Vec<Measured> = runs
            .iter()
            .map(|[rate, server, load]| {
                vec![
                    (RATE, Some(*rate)),
                    (SERVER, Some(*server)),
                    (LOAD, Some(*load)),
                ]
            })
            .collect();
        let settings = vec![
            ("subscribers", Value::Count(100)),
            ("filter", Value::text("all")),
        ];
        let count = u32::try_from(runs.len()).unwrap();
        Line::new("fanout", settings, count).sum_up(&runs)
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let summary = |values: &[f64]| Summary::of(values.to_vec());
        let of = |median, min, max| Some(Summary { median, min, max });
        assert_eq!(summary(&[3.0, 1.0, 2.0]), of(2.0, 1.0, 3.0));
        assert_eq!(summary(&[4.0, 1.0, 3.0, 2.0]), of(2.5, 1.0, 4.0));
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn a_line_is_one_json_object_with_its_settings_first() {
        let json = serde_json::to_string(&line(&[[2e6, 0.97, 0.5]])).unwrap();
        assert_eq!(
            json,
            "{\"bench\":\"fanout\",\"subscribers\":100,\"filter\":\"all\",\"limit\":\"server\",\
             \"runs\":1,\"deliveries_per_second\":{\"median\":2000000.0,\"min\":2000000.0,\
             \"max\":2000000.0},\"server_cpu_share\":{\"median\":0.97,\"min\":0.97,\"max\":0.97},\
             \"load_cpu_share\":{\"median\":0.5,\"min\":0.5,\"max\":0.5}}"
        );
    }

    #[test]
    fn a_machine_that_others_use_is_the_limit_when_no_side_is() {
        let others = Figure {
            name: OTHERS_CPU_SHARE,
            title: "",
            unit: Unit::Share,
        };
        let limit = |server, others_share| {
            let run = vec![
                (SERVER, Some(server)),
                (LOAD, Some(0.1)),
                (others, Some(others_share)),
            ];
            let line = Line::new("fanout", Vec::new(), 1).sum_up(&[run]);
            assert!(!Table::default().line(&line).contains("others_"));
            line.limit()
        };
        assert_eq!(limit(0.5, 0.3), Some("others"));
        assert_eq!(limit(0.5, 0.1), Some("neither"));
        assert_eq!(limit(0.95, 0.3), Some("server"));
    }

    #[test]
    fn the_side_without_cpu_left_is_named() {
        let limit = |server, load| line(&[[1.0, server, load]]).limit();
        assert_eq!(limit(0.95, 0.95), Some("both"));
        assert_eq!(limit(0.95, 0.5), Some("server"));
        assert_eq!(limit(0.5, 0.95), Some("load"));
        assert_eq!(limit(0.5, 0.5), Some("neither"));
    }

    #[test]
    fn a_table_has_its_head_once_and_the_range_of_several_runs() {
        let mut table = Table::default();
        let line = line(&[[2.3e6, 0.97, 0.5], [2.41e6, 0.97, 0.5], [2.55e6, 0.98, 0.5]]);
        let plain = |text: &str| anstream::adapter::strip_str(text).to_string();
        let expected = "                                       deliveries
subscribers filter      limit          per second   server CPU     load CPU
100         all         server              2.41M          97%          50%
                                      2.30M–2.55M      97%–98%      50%–50%
";
        assert_eq!(
            plain(&table.line(&line)).trim_start_matches("\nfanout\n"),
            expected
        );
        assert_eq!(plain(&table.line(&line)).lines().count(), 2);
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        for (value, unit, expected) in [
            (0.0, Unit::Number, "0.00"),
            (999.4, Unit::Number, "999"),
            (999.6, Unit::Number, "1.00k"),
            (12_345.0, Unit::Number, "12.3k"),
            (2_410_000.0, Unit::Number, "2.41M"),
            (167.2, Unit::Micros, "167µs"),
            (2_035.0, Unit::Micros, "2.04ms"),
            (33.0 * 1024.0, Unit::Bytes, "33.0KiB"),
            (0.414, Unit::Seconds, "0.41s"),
            (0.934, Unit::Share, "93%"),
        ] {
            assert_eq!(show(value, unit), expected);
        }
    }

    #[test]
    fn a_figure_that_cannot_be_had_is_said_to_be_so() {
        let runs = [vec![(RATE, None)], vec![(RATE, Some(1.0))]];
        let line = Line::new("fanout", Vec::new(), 2).sum_up(&runs);
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(
            json,
            r#"{"bench":"fanout","runs":2,"deliveries_per_second":null}"#
        );
        assert!(Table::default().line(&line).contains("n/a"));
    }
}
