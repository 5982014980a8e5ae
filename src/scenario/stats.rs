//! The protocol in which schedulers of the scx project serve statistics: a line of JSON to a Unix
//! socket, and one back.
//!
//! ```text
//! {"req":"stats","args":{"target":"top"}}   ──▶
//! {"errno":0,"args":{"resp":{..}}}          ◀──
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::snapshot::MissingStatsReason;
use crate::wire::MAX_LINE;

/// Where they listen.
pub const SOCKET: &str = "/var/run/scx/root/stats";
/// What they are asked for when nobody says otherwise.
pub const TOP: &str = "top";

/// Bytes either way.
const MAX: u64 = MAX_LINE as u64;

/// The line that asks for a target's statistics, with further arguments.
///
/// # Errors
/// [`MissingStatsReason::RequestTooLarge`].
pub fn request(
    target: &str,
    args: &BTreeMap<String, String>,
) -> Result<String, MissingStatsReason> {
    let mut all = args.clone();
    all.insert("target".to_owned(), target.to_owned());
    line(&json!({ "req": "stats", "args": all }))
}

/// The line that asks which statistics there are.
#[must_use]
pub fn meta_request() -> String {
    json!({ "req": "stats_meta", "args": {} }).to_string()
}

fn line(request: &Value) -> Result<String, MissingStatsReason> {
    let line = request.to_string();
    match line.len() as u64 {
        size if size > MAX => Err(MissingStatsReason::RequestTooLarge { size, max: MAX }),
        _ => Ok(line),
    }
}

/// What an answer holds.
///
/// # Errors
/// [`MissingStatsReason::SchedulerError`], [`MissingStatsReason::MissingResp`];
/// [`MissingStatsReason::NoScheduler`] for something that is no answer of this protocol.
pub fn response(line: &str) -> Result<Value, MissingStatsReason> {
    let foreign = |why: String| {
        let start: String = line.chars().take(60).collect();
        let reason = format!("what answered there speaks another protocol: {why}: {start:?}");
        MissingStatsReason::NoScheduler { reason }
    };
    let answer: Value = serde_json::from_str(line).map_err(|e| foreign(e.to_string()))?;
    let Value::Object(mut answer) = answer else {
        return Err(foreign("it is no object".to_owned()));
    };
    let errno = match answer.get("errno") {
        None => 0,
        Some(errno) => match errno.as_i64().and_then(|n| i32::try_from(n).ok()) {
            Some(errno) => errno,
            None => return Err(foreign("its errno is no error number".to_owned())),
        },
    };
    let mut args = answer.remove("args").unwrap_or(Value::Null);
    if errno != 0 {
        return Err(MissingStatsReason::SchedulerError { errno, args });
    }
    match args.as_object_mut().and_then(|args| args.remove("resp")) {
        Some(resp) => Ok(resp),
        None => Err(MissingStatsReason::MissingResp { args }),
    }
}

/// An answer that went on beyond the cap.
#[must_use]
pub fn too_large(size: u64) -> MissingStatsReason {
    MissingStatsReason::ResponseTooLarge { size, max: MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MissingStatsReason as R;

    #[test]
    fn requests_are_lines_of_json() {
        let args = BTreeMap::from([("cpu".to_owned(), "3".to_owned())]);
        let line = request("top", &args).unwrap();
        assert_eq!(line, r#"{"args":{"cpu":"3","target":"top"},"req":"stats"}"#);
        assert_eq!(meta_request(), r#"{"args":{},"req":"stats_meta"}"#);
        let long = request(&"x".repeat(300_000), &BTreeMap::new()).unwrap_err();
        let R::RequestTooLarge { size, max } = long else { panic!("{long}") };
        assert!(size > 300_000 && max == 262_144);
    }

    #[test]
    fn answers_are_taken_apart() {
        let good = response(r#"{"errno":0,"args":{"resp":{"nr":7}}}"#);
        assert_eq!(good, Ok(json!({ "nr": 7 })));
        assert_eq!(response(r#"{"args":{"resp":null}}"#), Ok(Value::Null));
        let args = json!({ "resp": "no such target" });
        assert_eq!(
            response(r#"{"errno":22,"args":{"resp":"no such target"}}"#),
            Err(R::SchedulerError { errno: 22, args })
        );
        for (line, args) in [
            (r#"{"errno":0,"args":{"a":1}}"#, json!({ "a": 1 })),
            (r#"{"errno":0}"#, Value::Null),
            (r#"{"errno":0,"args":[1]}"#, json!([1])),
        ] {
            assert_eq!(response(line), Err(R::MissingResp { args }), "{line}");
        }
    }

    #[test]
    fn what_is_no_answer_says_so() {
        let deep = "[".repeat(100_000);
        for line in ["", "hello", "[1]", "{\"errno\":\"x\"}", "{\"errno\":1e99}", &deep] {
            let error = response(line).unwrap_err();
            let R::NoScheduler { reason } = &error else { panic!("{line}: {error}") };
            let says = "what answered there speaks another protocol: ";
            assert!(reason.starts_with(says) && reason.len() < 300, "{reason}");
        }
    }
}
