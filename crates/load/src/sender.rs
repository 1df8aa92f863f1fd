//! Owns the sending side: HTTP/1.1 over kept connections, one blocking thread each, with requests
//! that are bytes already. Knows nothing of what is in them.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    Context, Error, Stop,
    cpus::join,
    engine::{Protocol, ProtocolError},
    report::histogram,
    signer::{Request, Turn},
};

/// The server answers within its own request timeout of 8 s, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Room for the head and the body of every answer.
const ANSWER_BYTES_MAX: usize = 4_096;

/// The bounds of a number of connections: each has a thread.
pub const CONNECTIONS: std::ops::RangeInclusive<usize> = 1..=512;

/// The server closes connections that are quiet for 5 s, so one that was quiet this long is replaced
/// before it is used again.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// A kept connection to the webhook port.
pub(super) struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    used: Instant,
    answers: Answers,
    buffer: [u8; ANSWER_BYTES_MAX],
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Result<Self, Error> {
        let stream =
            connect(address).map_err(Error::system("the webhook port cannot be connected to"))?;
        Ok(Self {
            address,
            stream,
            used: Instant::now(),
            answers: Answers::of_new_events(),
            buffer: [0; ANSWER_BYTES_MAX],
        })
    }

    /// Sends a batch and waits until it is acknowledged as new.
    pub(super) fn post(&mut self, request: &[u8]) -> Result<(), Error> {
        if self.used.elapsed() > QUIET_MAX {
            *self = Self::open(self.address)?;
        }
        let answer = self.exchange(request);
        self.used = Instant::now();
        answer
    }

    fn exchange(&mut self, request: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(request)
            .map_err(Error::system("a batch cannot be sent"))?;
        let failed = "an answer cannot be read";
        loop {
            let read = self.stream.read(&mut self.buffer);
            let count = read.map_err(Error::system(failed))?;
            if count == 0 {
                return Err(Error::system(failed)(io::ErrorKind::UnexpectedEof));
            }
            let bytes = self.buffer.get(..count).unwrap_or_default();
            if self.answers.take(bytes)? > 0 {
                return Ok(());
            }
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// The answers on a kept connection, each of which has to be `200`. Counts them.
#[derive(Debug, Default)]
pub struct Answers {
    cut: Vec<u8>,
    /// Whether all events have to be new to the server.
    are_new: bool,
}

impl Answers {
    /// Of a bridge, to which every event is sent once.
    pub(super) fn of_new_events() -> Self {
        Self {
            are_new: true,
            ..Self::default()
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        self.cut.extend_from_slice(bytes);
        let (mut rest, mut count) = (self.cut.as_slice(), 0);
        while let Some((answer, after)) = Answer::parse(rest)? {
            answer.check(self.are_new)?;
            rest = after;
            count += 1;
        }
        let used = self.cut.len() - rest.len();
        self.cut.drain(..used);
        Ok(count)
    }
}

impl Protocol for Answers {
    fn opening(&self) -> Vec<u8> {
        Vec::new()
    }

    fn receive(&mut self, bytes: &[u8], _: &mut Vec<u8>) -> Result<u64, ProtocolError> {
        Ok(self.take(bytes)?)
    }

    fn is_ready(&self) -> bool {
        true
    }
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    status: &'a str,
    body: &'a str,
}

impl<'a> Answer<'a> {
    /// The first answer, and what comes after it. `None` while something is missing.
    fn parse(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, Error> {
        let unreadable = |what| Error::Refused(format!("an answer that {what},"));
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some((head, rest)) = end.and_then(|end| bytes.split_at_checked(end + 4)) else {
            return match bytes.len() {
                ..ANSWER_BYTES_MAX => Ok(None),
                _ => Err(unreadable("does not end")),
            };
        };
        let head = str::from_utf8(head).map_err(|_| unreadable("is no text"))?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse::<usize>().ok())?
        });
        let (Some(status), Some(length)) = (status, length) else {
            return Err(unreadable("has no status or does not say its length"));
        };
        if length > ANSWER_BYTES_MAX {
            return Err(unreadable("is too long"));
        }
        let Some((body, after)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let body = str::from_utf8(body).map_err(|_| unreadable("is no text"))?;
        Ok(Some((Self { status, body }, after)))
    }

    fn check(&self, are_new: bool) -> Result<(), Error> {
        if self.status != "200" {
            return Err(Error::Refused(format!("{} {}", self.status, self.body)));
        }
        // Every event is sent once, so a duplicate is a fault of the server or of this tool.
        if are_new && !self.body.contains(r#""duplicates":0"#) {
            return Err(Error::Lost(format!(
                "events were taken for duplicates: {}",
                self.body
            )));
        }
        Ok(())
    }
}

/// Connections to one server.
pub(super) struct Senders {
    connections: Vec<Connection>,
    stop: Stop,
}

impl Senders {
    pub(super) fn open(
        context: &Context<'_>,
        address: SocketAddr,
        count: usize,
    ) -> Result<Self, Error> {
        let open = |_| Connection::open(address);
        Ok(Self {
            connections: (0..count).map(open).collect::<Result<_, _>>()?,
            stop: context.stop.clone(),
        })
    }

    /// Runs `work` on a thread for each connection until it returns, and gathers what it recorded.
    pub(super) fn run(
        &mut self,
        work: impl Fn(&mut Connection, &mut Histogram<u64>) -> Result<(), Error> + Sync,
    ) -> Result<Histogram<u64>, Error> {
        let work = &work;
        thread::scope(|scope| {
            let threads: Vec<_> = self
                .connections
                .iter_mut()
                .map(|connection| {
                    scope.spawn(move || {
                        let mut times = histogram();
                        work(connection, &mut times).map(|()| times)
                    })
                })
                .collect();
            // All are joined, also after a failure: each ends by itself then.
            let results: Vec<_> = threads
                .into_iter()
                .map(|thread| join(thread.join()))
                .collect();
            let mut all = histogram();
            for times in results {
                // Both have the same bounds.
                let _ = all.add(times?);
            }
            Ok(all)
        })
    }

    /// Sends all requests as fast as they are acknowledged, and records how long each took, in
    /// microseconds.
    pub(super) fn send(&mut self, requests: &[Request]) -> Result<Histogram<u64>, Error> {
        let (turn, stop) = (Turn::default(), self.stop.clone());
        self.run(|connection, times| {
            while let Some(request) = requests.get(turn.next()) {
                stop.check()?;
                let sent = Instant::now();
                connection.post(request)?;
                times.saturating_record(micros(sent.elapsed()));
            }
            Ok(())
        })
    }
}

/// As histograms count.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &str =
        "HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"accepted\":1,\"duplicates\":0}";

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let bytes = [ACCEPTED, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"].concat();
        for cut in 1..bytes.len() {
            let mut answers = Answers::default();
            let pieces = bytes.as_bytes().chunks(cut);
            let counts = pieces.map(|piece| answers.take(piece).unwrap());
            assert_eq!(counts.sum::<u64>(), 2, "cut every {cut} bytes");
        }
    }

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        for cut in 0..ACCEPTED.len() {
            assert_eq!(Answer::parse(&ACCEPTED.as_bytes()[..cut]).unwrap(), None);
        }
        let (answer, after) = Answer::parse(ACCEPTED.as_bytes()).unwrap().unwrap();
        assert_eq!((answer.status, after), ("200", &b""[..]));
        assert!(answer.check(true).is_ok());
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_an_error() {
        let large = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(ANSWER_BYTES_MAX));
        for bytes in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n",
            &large,
        ] {
            let error = Answers::default().take(bytes.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Refused(_)), "{bytes}: {error}");
        }
    }

    #[test]
    fn only_new_events_that_were_taken_count() {
        let refused = Answer {
            status: "503",
            body: "{}",
        };
        assert!(matches!(refused.check(false), Err(Error::Refused(text)) if text == "503 {}"));
        let repeated = Answer {
            status: "200",
            body: r#"{"accepted":0,"duplicates":1}"#,
        };
        assert!(matches!(repeated.check(true), Err(Error::Lost(_))));
        assert!(repeated.check(false).is_ok());
    }
}
