//! A key set, as JWKS and as PEM: no document gives more keys than there may be, or weak ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prelude_bridge::signature::{KeySet, Signature};

fuzz_target!(|data: &[u8]| {
    for read in [KeySet::from_jwks(data), KeySet::from_pem(data)] {
        let Ok(set) = read else { continue };
        assert!(set.keys().len() <= 32);
        for key in set.keys() {
            assert!((2048..=8192).contains(&key.bits()));
        }
        let signature = Signature::parse("rsassa-pss-sha256=AAAA").unwrap();
        assert!(set.verify(data.to_vec().into(), &signature, None).is_err());
    }
});
