//! Subscribers as a team would write them in Rust: tonic's client with its defaults, a connection
//! each, every message decoded. All in one thread on the core of the load.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::proto::{SubscribeRequest, event_service_client::EventServiceClient};

pub(super) struct StandardClients {
    counts: Arc<[AtomicU64]>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl StandardClients {
    /// Starts them, and waits until the server has accepted all.
    pub(super) fn start(address: SocketAddr, count: usize) -> Result<Self> {
        let counts: Arc<[AtomicU64]> = (0..count).map(|_| AtomicU64::new(0)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ready, mut readies) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let (shared, stopped) = (Arc::clone(&counts), stop.clone());
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                for index in 0..count {
                    let (shared, ready) = (Arc::clone(&shared), ready.clone());
                    tokio::spawn(async move {
                        if let Err(error) = subscribe(address, &shared, index, &ready).await {
                            // The receiver is gone when it is over.
                            let _ = ready.send(Err(error)).await;
                        }
                    });
                }
                stopped.cancelled().await;
            });
        });
        let clients = Self {
            counts,
            stop,
            thread: Some(thread),
        };
        for _ in 0..count {
            readies.blocking_recv().context("no client")??;
        }
        Ok(clients)
    }

    /// What each has received.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for StandardClients {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn subscribe(
    address: SocketAddr,
    counts: &[AtomicU64],
    index: usize,
    ready: &mpsc::Sender<Result<()>>,
) -> Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let mut client = EventServiceClient::new(endpoint.connect().await?);
    let responses = client.subscribe(SubscribeRequest::default()).await?;
    ready.send(Ok(())).await?;
    let mut responses = responses.into_inner();
    let count = counts.get(index).context("no such client")?;
    while let Some(response) = responses.message().await? {
        count.fetch_add(response.events.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}
