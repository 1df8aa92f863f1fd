//! Owns the keys of a block's events, made anew from the block: where those beside it are damaged.

use std::sync::Arc;

use super::Block;
use crate::{event::EventKey, wire};

impl Block {
    /// The keys of the events, made anew from what they are made of.
    pub fn keys(&self) -> impl Iterator<Item = EventKey> {
        let mut raw_start = 0;
        self.entries.iter().enumerate().map(move |(index, entry)| {
            let name = |names: &[Arc<str>], index| names.get(usize::from(index)).cloned();
            let app = name(&self.apps, entry.app).unwrap_or_default();
            let event_type = name(&self.types, entry.event_type).unwrap_or_default();
            let id = wire::event_id(self.common_fields(index));
            let id = str::from_utf8(id).unwrap_or_default();
            let raw = self.raw_fields.get(raw_start..entry.raw_end as usize);
            raw_start = entry.raw_end as usize;
            let content = wire::raw_json(raw.unwrap_or_default());
            EventKey::new(&app, id, &event_type, content)
        })
    }
}
