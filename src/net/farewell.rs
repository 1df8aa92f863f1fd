//! Owns how a connection that is refused is told why. Knows nothing of the words, which are in the protocol
//! of the port.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::metrics::ConnectionRefusal;

/// How many refused connections may be waited for at once, so that they can be told why.
const WAITING_MAX: usize = 64;

/// How long a refused client may take to say something. Many clients misunderstand an answer that comes
/// before their request.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What is said to refused connections.
pub(super) struct Farewells {
    words: Box<dyn Fn(ConnectionRefusal) -> Vec<u8> + Send + Sync>,
    /// One is held while a refused connection is waited for.
    waiting: Arc<Semaphore>,
}

impl Farewells {
    pub(super) fn new(
        words: impl Fn(ConnectionRefusal) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self {
            words: Box::new(words),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// Tells a connection why it is refused: in what is returned, or at once if too many others are
    /// waited for.
    pub(super) fn say(
        &self,
        stream: TcpStream,
        refusal: ConnectionRefusal,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let words = (self.words)(refusal);
        if let Ok(waiting) = Arc::clone(&self.waiting).try_acquire_owned() {
            return Some(answer(stream, words, waiting));
        }
        // They fit into the buffer of a new socket.
        let _ = stream
            .into_std()
            .and_then(|mut stream| stream.write(&words));
        None
    }
}

/// Answers what a refused client says, which is read and not looked at: closing a connection on bytes
/// that nobody read would take the answer back.
async fn answer(mut stream: TcpStream, words: Vec<u8>, _waiting: OwnedSemaphorePermit) {
    let mut unread = [0; 4096];
    let _ = timeout(TIMEOUT, stream.read(&mut unread)).await;
    let answering = async {
        stream.write_all(&words).await?;
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _ = timeout(TIMEOUT, answering).await;
}
