//! The bytes of a block with a right checksum: what is read as one can be served in every format.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prelude_bridge::{
    event::block::{Block, Format},
    filter::{Filter, Spec},
};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if let Some((head, content)) = bytes.split_first_chunk_mut::<8>() {
        head[4..].copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
    }
    let Ok(block) = Block::parse(Bytes::from(bytes)) else {
        return;
    };
    assert!(Block::is_whole(block.as_bytes()));
    let count = block.entries().len();
    assert!(count > 0 && block.keys().count() == count);
    for format in [Format::Typed, Format::Raw, Format::Both] {
        let view = block.view(format);
        assert_eq!(view.len(), count);
        assert_eq!(view.slice(0..count).len(), view.bytes());
        for start in 0..count {
            let end = view.fitting_end(start, 100);
            assert!((start..=count).contains(&end) && view.slice_bytes(start..end) <= 100);
        }
    }
    for index in 0..count {
        let _ = (block.user_id(index), block.cursor(index));
    }
    let filter = Filter::compile(&Spec {
        types: vec!["user.**".to_owned()],
        user_ids: vec!["usr_1".to_owned()],
        ..Spec::default()
    });
    let filter = filter.unwrap();
    let selected = filter.select(&block).runs(0).count();
    assert!(selected == 0 || filter.may_match(&block));
});
