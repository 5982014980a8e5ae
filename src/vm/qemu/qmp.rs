//! QMP, QEMU's control protocol: one JSON object per line. One thread feeds what QEMU sends
//! ([`Feed`]), another asks ([`Qmp`]).

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::vm::channel::write_all;

/// No answer that is asked for here comes near this.
const MAX_LINE: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QmpError {
    /// QEMU is gone, or speaks something else.
    #[error("the control connection is closed: {0}")]
    Closed(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// QEMU's words.
    #[error("{0}")]
    Refused(String),
}

#[derive(Default)]
struct State {
    greeting: Option<Value>,
    /// The id whose answer somebody waits for; other answers came too late and are dropped.
    awaited: Option<u64>,
    answer: Option<Result<Value, String>>,
    shutdown: Option<String>,
    closed: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` finds something, QEMU is gone, or `deadline`.
    fn wait<T>(
        &self,
        deadline: Instant,
        mut found: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, QmpError> {
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&mut state) {
                return Ok(Some(value));
            }
            if let Some(why) = &state.closed {
                return Err(QmpError::Closed(why.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The end that takes what QEMU sends.
pub(super) struct Feed {
    shared: Arc<Shared>,
    partial: Vec<u8>,
}

impl Feed {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.shared.lock().closed.is_some() {
            return;
        }
        self.partial.extend_from_slice(bytes);
        while let Some(end) = memchr::memchr(b'\n', &self.partial) {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(message) => self.message(message),
                Err(e) => return self.close(&format!("a line that is not JSON ({e})")),
            }
        }
        if self.partial.len() > MAX_LINE {
            self.close("a line without an end");
        }
    }

    fn message(&mut self, mut message: Value) {
        let mut state = self.shared.lock();
        if let Some(greeting) = message.get_mut("QMP") {
            state.greeting = Some(greeting.take());
        } else if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str);
            // The first is the cause; a second one is our own doing.
            state.shutdown.get_or_insert_with(|| reason.unwrap_or("unknown").to_owned());
        } else if let Some(id) = message.get("id").and_then(Value::as_u64)
            && state.awaited == Some(id)
        {
            state.answer = Some(match message.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(message
                    .pointer("/error/desc")
                    .and_then(Value::as_str)
                    .unwrap_or("an answer without a reason")
                    .to_owned()),
            });
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Says that QEMU will not send any more. The first reason stays.
    pub(super) fn close(&mut self, why: &str) {
        self.partial = Vec::new();
        self.shared.lock().closed.get_or_insert_with(|| why.to_owned());
        self.shared.changed.notify_all();
    }

    /// Why QEMU said that the machine ends.
    pub(super) fn shutdown(&self) -> Option<String> {
        self.shared.lock().shutdown.clone()
    }
}

/// The end that asks.
pub(super) struct Qmp {
    stream: UnixStream,
    shared: Arc<Shared>,
    next_id: u64,
}

/// Both ends for one connection.
pub(super) fn connection(stream: UnixStream) -> (Qmp, Feed) {
    let shared = Arc::new(Shared::default());
    let feed = Feed { shared: shared.clone(), partial: Vec::new() };
    (Qmp { stream, shared, next_id: 1 }, feed)
}

impl Qmp {
    /// QEMU's version as (major, minor, micro), once it has greeted.
    pub(super) fn greeting(&mut self, within: Duration) -> Result<(u64, u64, u64), QmpError> {
        let greeting = self
            .shared
            .wait(Instant::now() + within, |state| state.greeting.take())?
            .ok_or(QmpError::Timeout(within))?;
        let part = |name: &str| greeting.pointer(&format!("/version/qemu/{name}"));
        let part = |name| part(name).and_then(Value::as_u64);
        match (part("major"), part("minor"), part("micro")) {
            (Some(major), Some(minor), Some(micro)) => Ok((major, minor, micro)),
            _ => Err(QmpError::Closed("a greeting without a version".to_owned())),
        }
    }

    /// Carries out one command and gives its answer.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + within;
        let id = self.next_id;
        self.next_id += 1;
        {
            let mut state = self.shared.lock();
            state.awaited = Some(id);
            state.answer = None;
        }
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        write_all(&self.stream, format!("{message}\n").as_bytes(), deadline).map_err(
            |e| match e.kind() {
                io::ErrorKind::TimedOut => QmpError::Timeout(within),
                _ => QmpError::Closed(e.to_string()),
            },
        )?;
        match self.shared.wait(deadline, |state| state.answer.take())? {
            Some(answer) => answer.map_err(QmpError::Refused),
            None => Err(QmpError::Timeout(within)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    const SOON: Duration = Duration::from_secs(20);

    fn pair() -> (Qmp, Feed, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, feed) = connection(ours);
        (qmp, feed, theirs)
    }

    /// Answers the next command with what `answer` makes of it.
    fn respond(
        mut feed: Feed,
        theirs: UnixStream,
        answer: impl FnOnce(&Value) -> String + Send + 'static,
    ) -> std::thread::JoinHandle<Feed> {
        std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(theirs).read_line(&mut line).unwrap();
            feed.push(answer(&serde_json::from_str(&line).unwrap()).as_bytes());
            feed
        })
    }

    #[test]
    fn a_greeting_gives_the_version() {
        let (mut qmp, mut feed, _theirs) = pair();
        assert_eq!(
            qmp.greeting(Duration::from_millis(5)),
            Err(QmpError::Timeout(Duration::from_millis(5)))
        );
        let text = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}"#;
        feed.push(&text[..20]);
        feed.push(&text[20..]);
        feed.push(b"\r\n");
        assert_eq!(qmp.greeting(SOON), Ok((7, 2, 22)));
    }

    #[test]
    fn answers_events_and_late_answers_are_told_apart() {
        let (mut qmp, feed, theirs) = pair();
        let thread = respond(feed, theirs, |asked| {
            assert_eq!(asked["execute"], "query-status");
            assert_eq!(asked["arguments"]["x"], 1);
            let id = &asked["id"];
            format!(
                "{{\"return\": {{}}, \"id\": 77}}\r\n{{\"event\": \"STOP\"}}\n{{\"event\": \
                 \"SHUTDOWN\", \"data\": {{\"guest\": true, \"reason\": \"guest-reset\"}}}}\n\
                 {{\"return\": {{\"running\": true}}, \"id\": {id}}}\n"
            )
        });
        let answer = qmp.execute("query-status", &json!({ "x": 1 }), SOON);
        assert_eq!(answer, Ok(json!({ "running": true })));
        assert_eq!(thread.join().unwrap().shutdown().as_deref(), Some("guest-reset"));
    }

    #[test]
    fn a_refusal_carries_the_words() {
        let (mut qmp, feed, theirs) = pair();
        let thread = respond(feed, theirs, |asked| {
            let id = &asked["id"];
            format!("{{\"error\": {{\"class\": \"G\", \"desc\": \"no\"}}, \"id\": {id}}}\n")
        });
        let answer = qmp.execute("x", &Value::Null, SOON);
        assert_eq!(answer, Err(QmpError::Refused("no".to_owned())));
        thread.join().unwrap();
    }

    #[test]
    fn what_is_not_qmp_closes_the_connection() {
        for (bytes, why) in [
            (b"hello\n".to_vec(), "a line that is not JSON (expected value at line 1 column 1)"),
            (vec![b' '; MAX_LINE + 1], "a line without an end"),
        ] {
            let (mut qmp, mut feed, _theirs) = pair();
            feed.push(&bytes);
            feed.push(br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 2, "major": 7}}}}"#);
            assert_eq!(qmp.greeting(SOON), Err(QmpError::Closed(why.to_owned())));
        }
    }

    #[test]
    fn a_command_without_an_answer_ends_with_its_deadline_or_with_qemu() {
        let (mut qmp, mut feed, theirs) = pair();
        let short = Duration::from_millis(20);
        assert_eq!(qmp.execute("stop", &Value::Null, short), Err(QmpError::Timeout(short)));
        feed.close("QEMU ended");
        let closed = Err(QmpError::Closed("QEMU ended".to_owned()));
        assert_eq!(qmp.execute("stop", &Value::Null, SOON), closed);
        drop(theirs);
        assert!(matches!(qmp.execute("stop", &Value::Null, SOON), Err(QmpError::Closed(_))));
    }
}
