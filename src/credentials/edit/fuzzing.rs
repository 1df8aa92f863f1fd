//! What is true of every credentials file, for the fuzz targets.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a broken promise has to be seen"
)]

use super::*;
use crate::credentials::document::parse;

/// A file that is read is read the same after an edit and its reverse.
pub fn credentials(text: &str) {
    let Ok(document) = parse(text) else { return };
    for entry in &document.entries {
        let without = without(text, &entry.name);
        let Ok(Some(without)) = without else {
            panic!("an entry cannot be removed: {without:?}")
        };
        let left = parse(&without).map(|document| document.entries);
        let others = document.entries.iter().filter(|other| *other != entry);
        assert_eq!(left, Ok(others.cloned().collect()));
        let with = with(&without, entry);
        let back = with.and_then(|text| parse(&text));
        assert!(back.as_ref().is_ok_and(|back| back.is_whole), "{back:?}");
        let last = back.ok().and_then(|mut back| back.entries.pop());
        assert_eq!(last.as_ref(), Some(entry));
    }
}
