//! Owns what h2 is given to send: a piece of a response, with what it holds of the connection's memory
//! until the socket has taken it.

use std::{io::IoSlice, sync::Arc};

use bytes::Buf;

use super::{gather::Shelf, unsent::Share};
use crate::subscription::Response;

/// Bytes on their way to the socket; none by default. h2 drops them once they are written.
#[derive(Default)]
pub(super) struct Piece {
    response: Response,
    /// What they hold of the connection's memory.
    share: Option<Arc<Share>>,
    /// Where the connection looks for shared slices.
    shelf: Shelf,
}

impl Piece {
    pub(super) fn new(response: Response, share: Share, shelf: Shelf) -> Self {
        Self {
            response,
            share: Some(Arc::new(share)),
            shelf,
        }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.response.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.response.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = self.response.parts().take(slices.len());
        self.shelf.show(parts, self.share.as_ref());
        self.response.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.response.advance(count);
    }
}
