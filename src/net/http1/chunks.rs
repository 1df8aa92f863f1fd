//! Owns the grammar of a body in chunks (RFC 9112 section 7.1) as far as it says where the body ends.
//! Decoding it is hyper's task; what passes here means the same to both.

use super::{
    fault::Fault,
    head::{HeadLimits, field},
};

/// hyper's limits, for which it would report a broken body: bytes of extensions in all chunks, and of the
/// trailers with the ends of their lines. It refuses a body that has as many.
const EXTENSIONS_LIMIT: usize = 16 * 1024;
const TRAILERS_LIMIT: usize = 16 * 1024;

/// Follows a body in chunks from its first byte to its last.
#[derive(Debug)]
pub(super) struct Chunks {
    next: Next,
    limits: HeadLimits,
    extension_bytes: usize,
    trailers: usize,
    trailer_bytes: usize,
    /// The bytes of the trailer line that has begun.
    line: Vec<u8>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A size that so far is this number, or the first digit of one.
    Size(Option<u64>),
    /// Spaces after a size, before an extension.
    Spaces(u64),
    Extension(u64),
    SizeLineFeed(u64),
    /// So many bytes of content, at least one.
    Content(u64),
    ContentReturn,
    ContentLineFeed,
    Trailer,
    TrailerLineFeed,
    /// Nothing: the body is complete.
    Nothing,
}

impl Chunks {
    pub(super) fn new(limits: HeadLimits) -> Self {
        Self {
            next: Next::Size(None),
            limits,
            extension_bytes: 0,
            trailers: 0,
            trailer_bytes: 0,
            line: Vec::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.next == Next::Nothing
    }

    /// Follows these bytes, and returns how many of them belong to the body.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self.next {
                Next::Nothing => break,
                Next::Content(left) => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - length as u64;
                    self.next = if left == 0 {
                        Next::ContentReturn
                    } else {
                        Next::Content(left)
                    };
                    rest = rest.get(length..).unwrap_or_default();
                }
                _ => {
                    self.next = self.after(byte)?;
                    rest = after;
                }
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// What follows a byte that is not content.
    fn after(&mut self, byte: u8) -> Result<Next, Fault> {
        const SIZE: Fault = Fault::Malformed("the size of a chunk is not a hexadecimal number");
        if matches!(self.next, Next::Trailer | Next::TrailerLineFeed) {
            self.trailer_bytes += 1;
            let bytes_max = self.limits.bytes_max.min(TRAILERS_LIMIT - 1);
            if self.trailer_bytes > bytes_max {
                return Err(Fault::TrailersTooLarge);
            }
        }
        Ok(match (self.next, byte) {
            (Next::Size(size), _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let size = size.unwrap_or_default().checked_mul(16);
                let size = size.and_then(|size| size.checked_add(digit.into()));
                Next::Size(Some(size.ok_or(Fault::ChunkTooLarge)?))
            }
            (Next::Size(Some(size)) | Next::Spaces(size), b';') => Next::Extension(size),
            (Next::Size(Some(size)) | Next::Spaces(size), b' ' | b'\t') => Next::Spaces(size),
            (Next::Size(Some(size)) | Next::Extension(size), b'\r') => Next::SizeLineFeed(size),
            (Next::Size(_) | Next::Spaces(_), _) => return Err(SIZE),
            (Next::Extension(size), _) if byte == b'\t' || !byte.is_ascii_control() => {
                self.extension_bytes += 1;
                if self.extension_bytes >= EXTENSIONS_LIMIT {
                    return Err(Fault::ExtensionsTooLarge);
                }
                Next::Extension(size)
            }
            (Next::SizeLineFeed(0), b'\n') => Next::Trailer,
            (Next::SizeLineFeed(size), b'\n') => Next::Content(size),
            (Next::ContentReturn, b'\r') => Next::ContentLineFeed,
            (Next::ContentLineFeed, b'\n') => Next::Size(None),
            (Next::Trailer, b'\r') => Next::TrailerLineFeed,
            (Next::Trailer, _) if byte != b'\n' => {
                self.line.push(byte);
                Next::Trailer
            }
            (Next::TrailerLineFeed, b'\n') if self.line.is_empty() => Next::Nothing,
            (Next::TrailerLineFeed, b'\n') => {
                field(&self.line)?;
                self.line.clear();
                self.trailers += 1;
                if self.trailers > self.limits.fields_max {
                    return Err(Fault::TrailersTooLarge);
                }
                Next::Trailer
            }
            _ => return Err(Fault::Malformed("a chunk does not end where its size says")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        fields_max: 2,
        bytes_max: 64,
    };

    /// How long the body is at the beginning of this, if it ends; the same in pieces of any size.
    fn length(text: &str) -> Result<Option<usize>, Fault> {
        let all = follow(text, text.len().max(1));
        for piece in 1..text.len() {
            assert_eq!(follow(text, piece), all, "{text:?} in pieces of {piece}");
        }
        all
    }

    fn follow(text: &str, piece: usize) -> Result<Option<usize>, Fault> {
        let mut chunks = Chunks::new(LIMITS);
        let mut length = 0;
        for piece in text.as_bytes().chunks(piece) {
            length += chunks.follow(piece)?;
        }
        Ok(chunks.is_complete().then_some(length))
    }

    #[test]
    fn a_body_ends_after_its_trailers() {
        for body in [
            "0\r\n\r\n",
            "000\r\n\r\n",
            "1\r\nx\r\n0\r\n\r\n",
            "A\r\n0123456789\r\na\r\n\r\n\r\n0\r\n\r\n0\r\n0\r\n\r\n",
            "1;a=b;c=\"d\"\r\nx\r\n0 ; e\r\n\r\n",
            "1\t;\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n",
        ] {
            assert_eq!(length(body), Ok(Some(body.len())), "{body:?}");
            assert_eq!(length(&format!("{body}GET /")), Ok(Some(body.len())));
            assert_eq!(length(&body[..body.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn whatever_is_not_a_chunk_is_refused() {
        for body in [
            "\r\n",
            ";a\r\n",
            "x\r\n",
            "0x1\r\nx\r\n",
            "+1\r\nx\r\n",
            "-1\r\n",
            " 1\r\n",
            "1 \r\nx\r\n",
            "1 2\r\n",
            "1\nx\r\n",
            "1\rx",
            "1;a\nx",
            "1;a\u{0}\r\n",
            "1\r\nxx",
            "1\r\nx\n0\r\n\r\n",
            "1\r\nx0\r\n\r\n",
            "0\r\nA b\r\n\r\n",
            "0\r\nA : b\r\n\r\n",
            "0\r\nA: b\n\r\n",
            "0\r\n A: b\r\n\r\n",
        ] {
            assert!(matches!(length(body), Err(Fault::Malformed(_))), "{body:?}");
        }
        assert_eq!(length("10000000000000000\r\n"), Err(Fault::ChunkTooLarge));
        assert_eq!(
            length("0\r\na:\r\nb:\r\nc:\r\n"),
            Err(Fault::TrailersTooLarge)
        );
        let long = format!("0\r\n{}", "x".repeat(65));
        assert_eq!(length(&long), Err(Fault::TrailersTooLarge));
        let two = format!("0\r\nx: {0}\r\nx: {0}\r\n", "x".repeat(30));
        assert_eq!(length(&two), Err(Fault::TrailersTooLarge));
    }
}
