//! A proxy between a bridge and a server of its engine, which can hold back everything that comes through it:
//! no connection is closed, and nothing arrives, as in a network that loses packets.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Leads every connection to one server.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    traffic: Arc<Traffic>,
}

struct Traffic {
    /// How many bytes have passed, in both directions and all connections.
    passed: AtomicU64,
    /// Nothing passes once so many have.
    passes_below: watch::Sender<u64>,
}

impl Proxy {
    pub(super) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let traffic = Arc::new(Traffic {
            passed: AtomicU64::new(0),
            passes_below: watch::Sender::new(u64::MAX),
        });
        let proxy = Self {
            address,
            traffic: Arc::clone(&traffic),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&traffic).connect(client, server));
            }
        });
        proxy
    }

    /// Holds everything back from now on.
    pub(super) fn cut(&self) {
        self.traffic.passes_below.send_replace(0);
    }

    /// Holds everything back after so many more bytes.
    pub(super) fn cut_after(&self, bytes: u64) {
        let passed = self.traffic.passed.load(Ordering::SeqCst);
        self.traffic.passes_below.send_replace(passed + bytes);
    }

    /// Lets everything through, also what was held back.
    pub(super) fn mend(&self) {
        self.traffic.passes_below.send_replace(u64::MAX);
    }
}

impl Traffic {
    /// Ends when either side closes: the other one then sees that, too.
    async fn connect(self: Arc<Self>, mut client: TcpStream, server: SocketAddr) {
        let Ok(mut server) = TcpStream::connect(server).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            () = self.pass(from_client, to_server) => {}
            () = self.pass(from_server, to_client) => {}
        }
    }

    async fn pass(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut part = vec![0; 16 * 1024];
        let mut passes_below = self.passes_below.subscribe();
        while let Ok(length @ 1..) = from.read(&mut part).await {
            let passes = |below: &u64| self.passed.load(Ordering::SeqCst) < *below;
            if passes_below.wait_for(passes).await.is_err() {
                return;
            }
            self.passed.fetch_add(length as u64, Ordering::SeqCst);
            if to.write_all(&part[..length]).await.is_err() {
                return;
            }
        }
    }
}
