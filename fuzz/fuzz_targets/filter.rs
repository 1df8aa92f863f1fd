//! A filter: it means the same after it was written down. The first byte of a line says which field the
//! line is an entry of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::filter::{Filter, Spec};

fuzz_target!(|text: &str| {
    let mut spec = Spec::default();
    for line in text.lines() {
        let mut letters = line.chars();
        let field = match letters.next() {
            Some('x') => &mut spec.exclude_types,
            Some('a') => &mut spec.app_ids,
            Some('u') => &mut spec.user_ids,
            _ => &mut spec.types,
        };
        field.push(letters.as_str().to_owned());
    }
    let Ok(filter) = Filter::compile(&spec) else {
        return;
    };
    let written = filter.to_spec();
    let again = Filter::compile(&written).unwrap();
    assert_eq!(again.to_spec(), written);
    assert_eq!(again.is_everything(), filter.is_everything());
    let none = [String::new()];
    let any = |field: &[String]| field.first().cloned().unwrap_or_default();
    for event_type in spec.types.iter().chain(&spec.exclude_types).chain(&none) {
        for user in [any(&spec.user_ids), String::new(), "usr_1".to_owned()] {
            let matches = |filter: &Filter| filter.matches(event_type, &any(&spec.app_ids), &user);
            assert_eq!(matches(&filter), matches(&again), "{event_type}");
        }
    }
});
