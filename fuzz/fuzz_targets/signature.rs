//! The headers of a delivery that strangers write: the signature, and `Forwarded`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::{
    fuzzing,
    signature::{SCHEME, Signature},
};

fuzz_target!(|data: &[u8]| {
    fuzzing::forwarded(data);
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    // Most inputs begin otherwise.
    for text in [text, &format!("{SCHEME}{text}")] {
        let Ok(signature) = Signature::parse(text) else {
            continue;
        };
        assert!((1..=1024).contains(&signature.as_bytes().len()));
        // One signature has one spelling, with padding or without.
        let rest = text.strip_prefix(SCHEME).unwrap();
        let bare = rest.trim_end_matches('=');
        let padded = format!(
            "{SCHEME}{bare}{}",
            "=".repeat(bare.len().wrapping_neg() % 4)
        );
        for same in [format!("{SCHEME}{bare}"), padded] {
            let same = Signature::parse(&same).unwrap();
            assert!(same == signature);
        }
        assert_eq!(bare.len(), (signature.as_bytes().len() * 8).div_ceil(6));
    }
});
