//! Converts the newer of the two text formats into the older one.

/// Turns OpenMetrics text into the older format. They differ in the comment lines: the older one
/// names a counter with its suffix, knows no `info`, no `# UNIT` and no `# EOF`.
pub(super) fn prometheus(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len());
    // The help comes before the type, but the type decides the name.
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            page.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            page.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            page.extend([line, "\n"]);
        }
    }
    page
}
