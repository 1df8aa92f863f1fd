//! The places of the program that call the system for its files, by name.

use std::{collections::BTreeMap, fmt, process::Command, sync::LazyLock};

use super::trace::Record;
use crate::cli::program;

/// As the library counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Open = 1,
    Write,
    Truncate,
    Sync,
    Rename,
    Unlink,
    Mkdir,
    Read,
    List,
}

/// A call of the system: by which function of the project, and for which other one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Site {
    pub(crate) operation: Operation,
    pub(crate) function: String,
    pub(crate) caller: String,
}

impl fmt::Display for Site {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            function,
            caller,
        } = self;
        write!(formatter, "{operation:?} by {function} for {caller}")
    }
}

/// The functions of the program, by where they begin.
pub(crate) struct Names(BTreeMap<usize, String>);

/// Those of the program that is tested.
pub(crate) static NAMES: LazyLock<Names> = LazyLock::new(Names::read);

impl Names {
    /// Reads the table of symbols, which is there without any debug information.
    fn read() -> Self {
        let output = Command::new("nm")
            .args(["-C", "--defined-only"])
            .arg(program(&[]).get_program())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "nm, which comes with the C compiler"
        );
        let text = String::from_utf8_lossy(&output.stdout);
        let symbols = text.lines().filter_map(|line| {
            let (address, rest) = line.split_once(' ')?;
            let (kind, name) = rest.split_once(' ')?;
            let address = usize::from_str_radix(address, 16).ok()?;
            "tTwW".contains(kind).then(|| (address, plain(name)))
        });
        Self(symbols.collect())
    }

    /// The function that a call returns to. That may be the next one already, if it never returns.
    fn of(&self, address: usize) -> &str {
        let before = self.0.range(..address);
        before.last().map_or("", |(_, name)| name)
    }

    /// Where a call was made, and the addresses of the two functions.
    pub(crate) fn site(&self, record: &Record) -> Option<(Site, [usize; 2])> {
        let operation = record.operation()?;
        let mut of_project = Vec::new();
        for &frame in &record.frames {
            let name = self.of(frame);
            if name.starts_with("prelude_bridge")
                && of_project.last().is_none_or(|&(_, last)| last != name)
            {
                of_project.push((frame, name));
            }
        }
        let (address, function) = *of_project.first()?;
        let (calling, caller) = of_project.get(1).copied().unwrap_or((0, "nobody"));
        let site = Site {
            operation,
            function: short(function),
            caller: short(caller),
        };
        Some((site, [address, calling]))
    }
}

/// Without the hash, and without closures, which are part of their function.
fn plain(function: &str) -> String {
    let name = function.split("::h").collect::<Vec<_>>();
    let hash = name
        .last()
        .is_some_and(|last| last.len() == 16 && last.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let name = if hash {
        name[..name.len() - 1].join("::h")
    } else {
        function.to_owned()
    };
    let name = name.replace("::{{closure}}", "");
    // `<a::B as c::D>::e` is of a::B.
    match name.strip_prefix('<') {
        Some(rest) if rest.starts_with("prelude_bridge") => {
            rest.replace(" as ", "::").replace('>', "")
        }
        _ => name,
    }
}

fn short(function: &str) -> String {
    let name = function.strip_prefix("prelude_bridge_log::");
    let name = name.unwrap_or(function);
    name.strip_prefix("embedded::").unwrap_or(name).to_owned()
}
