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
    report::histogram,
    signer::{Request, Turn, join},
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
    answer: [u8; ANSWER_BYTES_MAX],
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Result<Self, Error> {
        let stream =
            connect(address).map_err(Error::system("the webhook port cannot be connected to"))?;
        Ok(Self {
            address,
            stream,
            used: Instant::now(),
            answer: [0; ANSWER_BYTES_MAX],
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
        let mut have = 0;
        loop {
            let room = self.answer.get_mut(have..).unwrap_or_default();
            let count = self.stream.read(room).map_err(Error::system(failed))?;
            have += count;
            let so_far = self.answer.get(..have).unwrap_or_default();
            match Answer::parse(so_far) {
                Some(answer) => return answer.check(),
                // Also when the answer is longer than there is room for.
                None if count == 0 => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::System {
                        what: failed,
                        source,
                    });
                }
                None => {}
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

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer<'a> {
    status: &'a str,
    body: &'a str,
}

impl<'a> Answer<'a> {
    /// `None` while something is missing.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?;
        let (head, rest) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?;
        let length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then_some(value)
        })?;
        let body = rest.get(..length.trim().parse().ok()?)?;
        Some(Self { status, body })
    }

    fn check(&self) -> Result<(), Error> {
        if self.status != "200" {
            return Err(Error::Refused(format!("{} {}", self.status, self.body)));
        }
        // Every event is sent once, so a duplicate is a fault of the server or of this tool.
        if !self.body.contains(r#""duplicates":0"#) {
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
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"accepted\":1,\"duplicates\":0}";
        for cut in 0..text.len() {
            assert_eq!(Answer::parse(&text.as_bytes()[..cut]), None);
        }
        let answer = Answer::parse(text.as_bytes()).unwrap();
        assert_eq!(answer.status, "200");
        assert!(answer.check().is_ok());
    }

    #[test]
    fn only_new_events_that_were_taken_count() {
        let refused = Answer {
            status: "503",
            body: "{}",
        };
        assert!(matches!(refused.check(), Err(Error::Refused(text)) if text == "503 {}"));
        let repeated = Answer {
            status: "200",
            body: r#"{"accepted":0,"duplicates":1}"#,
        };
        assert!(matches!(repeated.check(), Err(Error::Lost(_))));
    }
}
