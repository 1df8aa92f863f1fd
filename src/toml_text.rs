//! TOML that people write, for every file of this program that they do: parsed with all its syntax
//! errors, each with its place and nothing of the file's content, which may be a secret. Knows no keys.

use toml::{
    Spanned,
    de::{DeTable, Error},
};

use crate::nearest::nearest;

/// One place where a text is not TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Counted from one; `None` when the fault is the whole file's.
    pub line: Option<usize>,
    /// What is wrong, with the column.
    pub message: String,
}

/// Parses a document. What follows a syntax error cannot be interpreted, so there is no table with one.
///
/// # Errors
/// All syntax errors, in the order of the file.
pub fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Vec<SyntaxError>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table);
    }
    Err(errors.iter().map(|error| located(text, error)).collect())
}

/// The line of a byte, counted from one.
pub fn line_at(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

/// What to say of an unknown key beside its name: the known key that it is most like, and `keys`,
/// which says where all are found.
pub fn help_of_unknown_key<'k>(
    key: &str,
    known: impl IntoIterator<Item = &'k str>,
    keys: &str,
) -> String {
    match nearest(key, known) {
        Some(near) => format!("did you mean `{near}`? {keys}"),
        None => keys.to_owned(),
    }
}

/// The parser's message without its excerpt of the file.
fn located(text: &str, error: &Error) -> SyntaxError {
    let Some(span) = error.span() else {
        return SyntaxError {
            line: None,
            message: format!("not valid TOML: {}", error.message()),
        };
    };
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    let column = line.chars().count() + 1;
    SyntaxError {
        line: Some(line_at(text, span.start)),
        message: format!("not valid TOML at column {column}: {}", error.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_syntax_error_has_a_place_and_shows_nothing_of_the_text() {
        let errors = parse("a = 1\nb = hunter2\nc =\n").unwrap_err();
        let lines: Vec<_> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [Some(2), Some(3)]);
        assert!(errors[0].message.starts_with("not valid TOML at column 5"));
        assert!(!format!("{errors:?}").contains("hunter2"), "{errors:?}");
        // Columns count characters, not bytes.
        let errors = parse("a = 'é' x\n").unwrap_err();
        let said = &errors[0].message;
        assert!(said.starts_with("not valid TOML at column 9"), "{said}");
        assert!(parse("a = 1\n").is_ok());
    }

    #[test]
    fn an_unknown_key_is_told_with_a_known_one_only_if_they_are_similar() {
        let help = |key| help_of_unknown_key(key, ["name", "types"], "The keys are name, types.");
        assert_eq!(
            help("nme"),
            "did you mean `name`? The keys are name, types."
        );
        assert_eq!(help("0f4ad30e0a9b"), "The keys are name, types.");
    }
}
