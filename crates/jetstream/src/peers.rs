//! Owns the questions between bridges: request and reply of NATS, which stores nothing.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{Client, Message, Request, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture};
use prelude_bridge_log::sequencer::{Answer, Peers};
use tokio::{
    runtime::Handle,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::stream::Stream;

/// So many questions are answered at a time; more get no answer.
const QUESTIONS_MAX: usize = 256;
/// How long a question to oneself takes at most.
const TRY_TIME_MAX: Duration = Duration::from_secs(2);
/// Before it is tried again to hear questions.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Asks and answers.
#[derive(Debug)]
pub(crate) struct Questions {
    stream: Arc<Stream>,
    runtime: Handle,
    serving: Mutex<Serving>,
}

#[derive(Debug)]
enum Serving {
    NotYet,
    Since(AbortHandle),
    Stopped,
}

impl Questions {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            runtime: Handle::current(),
            serving: Mutex::new(Serving::NotYet),
        }
    }

    /// Asks itself, under a number that no bridge has. Says what is in the way.
    pub(crate) async fn try_asking(&self) -> Result<(), String> {
        let link = &self.stream.writer;
        let inbox = link.client().new_inbox();
        let subject = self
            .stream
            .names
            .peer(inbox.rsplit('.').next().unwrap_or("try"));
        let no_connection = || "no connection".to_owned();
        let mut questions = link
            .subscribe(subject.clone())
            .await
            .map_err(|_| no_connection())?;
        let asked = link.client().publish(subject, Bytes::from_static(b"?"));
        asked.await.map_err(|_| no_connection())?;
        match tokio::time::timeout(TRY_TIME_MAX, questions.next()).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(link
                .forbidden()
                .take()
                .unwrap_or_else(|| "a question did not arrive".to_owned())),
        }
    }

    /// Answers no more.
    pub(crate) fn stop(&self) {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Serving::Since(task) = &*serving {
            task.abort();
        }
        *serving = Serving::Stopped;
    }
}

impl Peers for Questions {
    fn ask(&self, peer: u32, question: Bytes, timeout: Duration) -> BoxFuture<'_, Option<Bytes>> {
        let request = Request::new().payload(question).timeout(Some(timeout));
        let link = &self.stream.writer;
        let asking = async move {
            link.connection().await.ok()?;
            let answer = link
                .client()
                .send_request(self.stream.names.peer(peer), request)
                .await;
            link.count_connections();
            Some(answer.ok()?.payload).filter(|answer| !answer.is_empty())
        };
        tokio::time::timeout(timeout, asking)
            .map(|answer| answer.ok().flatten())
            .boxed()
    }

    fn serve(&self, number: u32, answer: Answer) {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*serving, Serving::NotYet) {
            let task = self
                .runtime
                .spawn(serve(Arc::clone(&self.stream), number, answer));
            *serving = Serving::Since(task.abort_handle());
        }
    }
}

/// Answers until it is aborted, which also ends the answers under way.
async fn serve(stream: Arc<Stream>, number: u32, answer: Answer) {
    let mut answers = JoinSet::new();
    loop {
        if let Ok(questions) = stream.writer.subscribe(stream.names.peer(number)).await {
            answer_all(questions, stream.writer.client(), &answer, &mut answers).await;
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn answer_all(
    mut questions: Subscriber,
    client: &Client,
    answer: &Answer,
    answers: &mut JoinSet<()>,
) {
    loop {
        tokio::select! {
            question = questions.next() => match question {
                Some(question) if answers.len() < QUESTIONS_MAX => {
                    answers.spawn(answer_one(question, client.clone(), Arc::clone(answer)));
                }
                Some(_) => {}
                None => return,
            },
            Some(_) = answers.join_next() => {}
        }
    }
}

async fn answer_one(question: Message, client: Client, answer: Answer) {
    let Some(reply) = question.reply else {
        return;
    };
    let answer = answer(question.payload).await;
    if !answer.is_empty() {
        // Whoever asked does not wait for ever.
        let _ = client.publish(reply, answer).await;
    }
}
