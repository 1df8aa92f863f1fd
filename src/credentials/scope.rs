//! Owns what a credential allows, and narrows the filter of a request to it. Pure; knows nothing of how a
//! caller proves its credential.

use std::fmt;

use crate::filter::{self, ENTRIES_MAX, Spec};

/// How many names a refusal repeats: enough to show the mistake, and few enough for a header.
const NAMED_MAX: usize = 8;

/// What a credential allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Types of events, exact or patterns.
    pub types: Allowed,
    /// Apps, exactly.
    pub apps: Allowed,
}

/// Some names, or all. None at all is `Only` of nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// All of them.
    #[default]
    All,
    /// These, at most [`ENTRIES_MAX`]: they have to fit into a filter.
    Only(Vec<String>),
}

/// What a request asked for and its credential does not allow. The text repeats it: the caller sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// These types or patterns are not covered, or the credential allows no type at all and none
    /// was named.
    Types(Vec<String>),
    /// These apps are not allowed, or no app is and none was named.
    Apps(Vec<String>),
}

impl Scope {
    /// The filter within what is allowed. An empty field becomes all that is allowed. If
    /// [`filter::Filter::compile`] accepts the filter, it accepts the result.
    ///
    /// # Errors
    /// Everything in one field that is not allowed: a caller never gets less than it asked for without being
    /// told.
    pub fn narrow(&self, mut spec: Spec) -> Result<Spec, Forbidden> {
        spec.types = self
            .types
            .narrow(spec.types, filter::covers)
            .map_err(Forbidden::Types)?;
        spec.app_ids = self
            .apps
            .narrow(spec.app_ids, |allowed, wanted| allowed == wanted)
            .map_err(Forbidden::Apps)?;
        Ok(spec)
    }
}

impl Allowed {
    /// These names, or all if there are none: the meaning of flags. In a file, no names allow nothing.
    #[must_use]
    pub fn or_all(names: Vec<String>) -> Self {
        if names.is_empty() {
            Self::All
        } else {
            Self::Only(names)
        }
    }

    /// The names; empty for all.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::Only(names) => names,
        }
    }

    fn narrow(
        &self,
        wanted: Vec<String>,
        covers: fn(&str, &str) -> bool,
    ) -> Result<Vec<String>, Vec<String>> {
        let Self::Only(allowed) = self else {
            return Ok(wanted);
        };
        if wanted.is_empty() {
            // An empty field of a filter would mean all, so nothing allowed is a refusal.
            return match allowed.as_slice() {
                [] => Err(Vec::new()),
                allowed => Ok(allowed.to_vec()),
            };
        }
        let is_allowed = |wanted: &String| allowed.iter().any(|allowed| covers(allowed, wanted));
        let (allowed, mut forbidden): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_allowed);
        if forbidden.is_empty() {
            return Ok(allowed);
        }
        forbidden.truncate(ENTRIES_MAX);
        Err(forbidden)
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (names, one, many) = match self {
            Self::Types(names) => (names, "type", "types"),
            Self::Apps(names) => (names, "app", "apps"),
        };
        if names.is_empty() {
            return write!(
                formatter,
                "this credential allows no {many} of events at all: ask its operator for some"
            );
        }
        let what = if names.len() == 1 { one } else { many };
        write!(formatter, "this credential does not allow the {what} ")?;
        for (index, name) in names.iter().take(NAMED_MAX).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(formatter, "{comma}{}", name.escape_debug())?;
        }
        if let Some(more @ 1..) = names.len().checked_sub(NAMED_MAX) {
            write!(formatter, " and {more} more")?;
        }
        write!(
            formatter,
            ": leave them out, or name none to get all that it allows"
        )
    }
}

impl std::error::Error for Forbidden {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::Filter;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn scope() -> Scope {
        Scope {
            types: Allowed::or_all(strings(&["user.session.*", "user.created"])),
            apps: Allowed::or_all(strings(&["app_1", "app_2"])),
        }
    }

    fn asking(types: &[&str], app_ids: &[&str]) -> Spec {
        Spec {
            types: strings(types),
            app_ids: strings(app_ids),
            ..Spec::default()
        }
    }

    #[test]
    fn an_empty_filter_means_what_is_allowed() {
        let narrowed = scope().narrow(Spec::default()).unwrap();
        assert_eq!(
            narrowed,
            asking(&["user.session.*", "user.created"], &["app_1", "app_2"])
        );
        assert!(Filter::compile(&narrowed).is_ok());
        assert_eq!(
            Scope::default().narrow(Spec::default()),
            Ok(Spec::default())
        );
    }

    #[test]
    fn what_is_asked_for_within_the_allowed_stays_as_it_is() {
        let spec = Spec {
            exclude_types: strings(&["**"]),
            user_ids: strings(&["usr_1"]),
            ..asking(&["user.session.created", "user.session.*"], &["app_2"])
        };
        assert_eq!(scope().narrow(spec.clone()), Ok(spec));
    }

    #[test]
    fn everything_beyond_the_allowed_is_named() {
        let spec = asking(&["user.*", "user.created", "**", "order.paid"], &[]);
        let forbidden = scope().narrow(spec).unwrap_err();
        assert_eq!(
            forbidden,
            Forbidden::Types(strings(&["user.*", "**", "order.paid"]))
        );
        assert_eq!(
            forbidden.to_string(),
            "this credential does not allow the types user.*, **, order.paid: leave them out, or \
             name none to get all that it allows"
        );
        let forbidden = scope()
            .narrow(asking(&[], &["app_1", "app_3"]))
            .unwrap_err();
        assert_eq!(forbidden, Forbidden::Apps(strings(&["app_3"])));
    }

    #[test]
    fn a_refusal_names_a_few_and_counts_the_rest() {
        let many: Vec<String> = (0..20).map(|index| format!("type_{index}")).collect();
        let text = Forbidden::Types(many).to_string();
        assert!(text.contains("type_7 and 12 more"), "{text}");
        assert!(!text.contains("type_8"), "{text}");
    }

    #[test]
    fn nothing_allowed_is_not_everything() {
        let scope = Scope {
            types: Allowed::Only(Vec::new()),
            apps: Allowed::All,
        };
        assert_eq!(
            scope.narrow(Spec::default()),
            Err(Forbidden::Types(Vec::new()))
        );
        assert_eq!(
            scope.narrow(asking(&["user.created"], &[])),
            Err(Forbidden::Types(strings(&["user.created"])))
        );
    }
}
