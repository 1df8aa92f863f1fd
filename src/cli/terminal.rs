//! Owns how wide the terminal is and how much of it a text takes. Knows nothing of what is written.

use std::io::{self, IsTerminal as _};

/// Lines are cut no shorter than this, however narrow the terminal is.
const COLUMNS_MIN: usize = 20;

/// How long a line may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// As long as it likes: what reads it is a program or a file.
    Unlimited,
    /// As wide as the terminal at stdout is at that moment.
    Terminal,
    /// So many columns.
    #[cfg(test)]
    Columns(usize),
}

impl Width {
    /// That of stdout.
    pub(super) fn of_stdout() -> Self {
        if io::stdout().is_terminal() {
            Self::Terminal
        } else {
            Self::Unlimited
        }
    }

    /// In columns; `None` where there is no limit. Asks the system each time, as windows are resized.
    pub(super) fn columns(self) -> Option<usize> {
        match self {
            Self::Unlimited => None,
            Self::Terminal => {
                // Where the system does not say, as on a serial line, it is as wide as they were.
                let size = rustix::termios::tcgetwinsize(io::stdout());
                let columns = size.map_or(0, |size| usize::from(size.ws_col));
                Some(if columns == 0 { 80 } else { columns }.max(COLUMNS_MIN))
            }
            #[cfg(test)]
            Self::Columns(columns) => Some(columns),
        }
    }
}

/// How many columns a text takes, or more: wide characters begin at U+1100 (Unicode Standard Annex
/// 11), and all above are taken for wide, so that a line never wraps.
pub(super) fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

fn columns_of(character: char) -> usize {
    match character {
        '\0'..='\u{10ff}' | '…' => 1,
        _ => 2,
    }
}

/// The text, with an ellipsis where it would take more columns than there are.
pub(super) fn cut(text: &str, columns_max: usize) -> String {
    if columns(text) <= columns_max {
        return text.to_owned();
    }
    let mut left = columns_max.saturating_sub(1);
    let fits = |character: &char| {
        let taken = columns_of(*character);
        let is_fitting = taken <= left;
        left = left.saturating_sub(taken);
        is_fitting
    };
    let mut short: String = text.chars().take_while(fits).collect();
    if columns_max > 0 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_to_its_columns_and_no_further() {
        for (text, columns_max, expected) in [
            ("", 0, ""),
            ("", 5, ""),
            ("abcde", 5, "abcde"),
            ("abcdef", 5, "abcd…"),
            ("abc", 1, "…"),
            ("abc", 0, ""),
            ("éàü", 3, "éàü"),
            ("日本語", 6, "日本語"),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
        ] {
            let short = cut(text, columns_max);
            assert_eq!(short, expected);
            assert!(columns(&short) <= columns_max, "{short}");
        }
    }

    #[test]
    fn a_pipe_has_no_width() {
        assert_eq!(Width::Unlimited.columns(), None);
    }
}
