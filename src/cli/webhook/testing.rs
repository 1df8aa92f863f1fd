//! Prelude's API for tests: answers that are known before.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

/// The URL of an API that answers the requests with these statuses and bodies in turn.
pub(super) async fn api(answers: impl IntoIterator<Item = (u16, &'static str)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answers: Vec<_> = answers.into_iter().collect();
    tokio::spawn(async move {
        for (status, body) in answers {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut body_bytes = 0;
            let mut line = String::new();
            while stream.read_line(&mut line).await.unwrap() > 2 {
                let lower = line.to_ascii_lowercase();
                if let Some(length) = lower.strip_prefix("content-length:") {
                    body_bytes = length.trim().parse().unwrap();
                }
                line.clear();
            }
            stream.read_exact(&mut vec![0; body_bytes]).await.unwrap();
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    format!("http://{address}")
}
