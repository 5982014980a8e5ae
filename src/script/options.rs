//! Option maps: every key is known, every value has its type, every mistake names its mending.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rhai::{Dynamic, Map};

use crate::words::nearest;

use super::units;
use super::values::described;

/// Bytes that the path of a Unix socket has room for, with the 0 at its end (`sun_path`).
const SOCKET_PATH: usize = 108;

/// A mistake in an option map: the key that it is about, if any, and what to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) key: Option<String>,
    pub(crate) message: String,
    /// Whether a later version will do it.
    pub(crate) later: bool,
}

type Read<T> = Result<Option<T>, Mistake>;

/// The options of one call.
pub(crate) struct Options<'a> {
    /// What they belong to: `scenario(..)`.
    what: &'static str,
    map: &'a Map,
}

impl<'a> Options<'a> {
    /// Checks the keys: each is in `known`, none in `later`.
    pub(crate) fn new(
        what: &'static str,
        map: &'a Map,
        known: &[&'static str],
        later: &[&'static str],
    ) -> Result<Self, Mistake> {
        for key in map.keys().map(|k| k.as_str()) {
            if known.contains(&key) {
                continue;
            }
            let is_later = later.contains(&key);
            let message = if is_later {
                format!("the option \"{key}\" of {what} is not available yet")
            } else {
                let all = known.join(", ");
                match nearest(key, known.iter().copied()) {
                    Some(near) => format!(
                        "\"{key}\" is no option of {what}; did you mean \"{near}\"? Options are: {all}"
                    ),
                    None => format!("\"{key}\" is no option of {what}; options are: {all}"),
                }
            };
            return Err(Mistake { key: Some(key.to_string()), message, later: is_later });
        }
        Ok(Options { what, map })
    }

    /// What is given, of whatever type.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Dynamic> {
        self.get(key)
    }

    fn get(&self, key: &str) -> Option<&'a Dynamic> {
        self.map.get(key).filter(|v| !v.is_unit())
    }

    /// A mistake about `key`.
    pub(crate) fn wrong(&self, key: &str, why: impl std::fmt::Display) -> Mistake {
        let message = format!("the option \"{key}\" of {}: {why}", self.what);
        Mistake { key: Some(key.to_string()), message, later: false }
    }

    fn not_a(&self, key: &str, want: &str, found: &Dynamic) -> Mistake {
        self.wrong(key, format!("expected {want}, found {}", described(found)))
    }

    pub(crate) fn string(&self, key: &str) -> Read<String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.clone().into_string() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.not_a(key, "a string", value)),
        }
    }

    /// The path of a Unix socket in the guest.
    pub(crate) fn socket(&self, key: &str) -> Read<String> {
        self.parsed(key, "a path of a socket in the guest", |path| {
            match path.starts_with('/') && path.len() < SOCKET_PATH && !path.contains('\0') {
                true => Ok(path.to_owned()),
                false => Err(format!(
                    "a path of a socket in the guest begins with / and has less than {SOCKET_PATH} \
                     bytes, like \"{}\"",
                    crate::scenario::stats::SOCKET
                )),
            }
        })
    }

    /// A string that `read` understands; `want` describes it.
    fn parsed<T>(
        &self,
        key: &str,
        want: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Read<T> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.clone().into_string() {
            Ok(text) => read(&text).map(Some).map_err(|why| self.wrong(key, why)),
            Err(_) => Err(self.not_a(key, want, value)),
        }
    }

    pub(crate) fn duration(&self, key: &str) -> Read<Duration> {
        self.parsed(key, &format!("a duration like {}", units::DURATION), units::duration)
    }

    pub(crate) fn size(&self, key: &str) -> Read<u64> {
        self.parsed(key, &format!("a size like {}", units::SIZE), units::size)
    }

    pub(crate) fn flag(&self, key: &str) -> Read<bool> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).map_err(|_| self.not_a(key, "true or false", value))
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn number(&self, key: &str, low: i64, high: i64) -> Read<i64> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let want = format!("a whole number from {low} to {high}");
        match value.as_int() {
            Ok(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ => Err(self.not_a(key, &want, value)),
        }
    }

    /// One of a few words.
    pub(crate) fn word(&self, key: &str, words: &[&'static str]) -> Read<&'static str> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let all = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
        let Ok(text) = value.clone().into_string() else {
            return Err(self.not_a(key, &format!("one of {all}"), value));
        };
        if let Some(word) = words.iter().find(|w| **w == text) {
            return Ok(Some(word));
        }
        let near = match nearest(&text, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"? It can be {all}"),
            None => format!("it can be {all}"),
        };
        Err(self.wrong(key, format!("\"{text}\" is unknown; {near}")))
    }

    /// An array of strings; a lone string counts as one.
    pub(crate) fn strings(&self, key: &str) -> Read<Vec<String>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Ok(one) = value.clone().into_string() {
            return Ok(Some(vec![one]));
        }
        let Ok(array) = value.as_array_ref() else {
            return Err(self.not_a(key, "an array of strings", value));
        };
        let texts = array.iter().map(|item| {
            item.clone().into_string().map_err(|_| {
                self.wrong(key, format!("expected only strings, found {}", described(item)))
            })
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// A map of its own.
    pub(crate) fn map(&self, key: &str) -> Read<Map> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_map_ref() {
            Ok(map) => Ok(Some(map.clone())),
            Err(_) => Err(self.not_a(key, "a map", value)),
        }
    }

    /// A map of texts: numbers and truth values are written out.
    pub(crate) fn texts(&self, key: &str, want: &str) -> Read<Vec<(String, String)>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Ok(map) = value.as_map_ref() else {
            return Err(self.not_a(key, want, value));
        };
        let pairs = map.iter().map(|(name, value)| {
            let scalar = value.is_string() || value.is_int() || value.is_bool() || value.is_float();
            match scalar {
                true => Ok((name.to_string(), value.to_string())),
                false => {
                    Err(self.wrong(key, format!("\"{name}\" is {}, not a text", described(value))))
                }
            }
        });
        pairs.collect::<Result<_, _>>().map(Some)
    }

    /// A map from host paths to guest paths.
    pub(crate) fn paths(&self, key: &str) -> Read<Vec<(PathBuf, String)>> {
        let want =
            "a map from a path here to a path in the guest, like #{ \"data.bin\": \"/data.bin\" }";
        let pairs = self.texts(key, want)?;
        Ok(pairs.map(|pairs| pairs.into_iter().map(|(host, guest)| (host.into(), guest)).collect()))
    }

    /// A map of plain values: numbers, truth values, strings, and arrays of them.
    pub(crate) fn values(&self, key: &str) -> Read<BTreeMap<String, serde_json::Value>> {
        let Some(map) = self.map(key)? else { return Ok(None) };
        let pairs = map.iter().map(|(name, value)| match json(value) {
            Some(json) => Ok((name.to_string(), json)),
            None => {
                let found = described(value);
                Err(self.wrong(
                    key,
                    format!("\"{name}\" cannot be {found}; give a number, true, false or a string"),
                ))
            }
        });
        pairs.collect::<Result<_, _>>().map(Some)
    }

    /// Whether `key` is given as a string.
    pub(crate) fn is_string(&self, key: &str) -> bool {
        self.get(key).is_some_and(Dynamic::is_string)
    }
}

fn json(value: &Dynamic) -> Option<serde_json::Value> {
    if let Ok(n) = value.as_int() {
        return Some(n.into());
    }
    if let Ok(x) = value.as_float() {
        return serde_json::Number::from_f64(x).map(Into::into);
    }
    if let Ok(b) = value.as_bool() {
        return Some(b.into());
    }
    if let Ok(array) = value.as_array_ref() {
        return array.iter().map(json).collect::<Option<Vec<_>>>().map(Into::into);
    }
    if let Some(u) = super::values::as_u64(value) {
        return Some(u.into());
    }
    value.clone().into_string().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhai::Engine;

    fn map(text: &str) -> Map {
        Engine::new().eval::<Map>(text).unwrap()
    }

    const KNOWN: &[&str] =
        &["topology", "timeout", "tags", "n", "on", "work", "env", "rodata", "memory"];

    #[test]
    fn keys_are_checked_with_the_nearest_name() {
        let told = |text: &str| {
            let map = map(text);
            Options::new("scenario(..)", &map, KNOWN, &["matrix"]).err().map(|m| m.message)
        };
        assert_eq!(told("#{topology: 1}"), None);
        let want = "\"topolgy\" is no option of scenario(..); did you mean \"topology\"? Options are: \
                    topology, timeout, tags, n, on, work, env, rodata, memory";
        assert_eq!(told("#{topolgy: 1}").as_deref(), Some(want));
        let want = "\"qqq\" is no option of scenario(..); options are: \
                    topology, timeout, tags, n, on, work, env, rodata, memory";
        assert_eq!(told("#{qqq: 1}").as_deref(), Some(want));
        let want = "the option \"matrix\" of scenario(..) is not available yet";
        assert_eq!(told("#{matrix: 1}").as_deref(), Some(want));
    }

    #[test]
    fn values_are_checked_and_mistakes_say_what_was_found() {
        let check = |text: &str, read: &dyn Fn(&Options<'_>) -> Option<Mistake>| {
            let map = map(text);
            let options = Options::new("x(..)", &map, KNOWN, &[]).unwrap();
            read(&options).map(|m| m.message.replacen("the option ", "", 1)).unwrap_or_default()
        };
        type Case<'a> = (&'a str, &'a dyn Fn(&Options<'_>) -> Option<Mistake>, &'a str);
        let cases: &[Case<'_>] = &[
            (
                "#{timeout: 5}",
                &|o| o.duration("timeout").err(),
                "\"timeout\" of x(..): expected a duration like \"250ms\", \"2s\" or \"1m30s\", found 5 (int)",
            ),
            (
                "#{timeout: \"5\"}",
                &|o| o.duration("timeout").err(),
                "\"timeout\" of x(..): \"5\" is no duration: 5 has no unit; write \"250ms\", \"2s\" or \"1m30s\"",
            ),
            (
                "#{memory: 512}",
                &|o| o.size("memory").err(),
                "\"memory\" of x(..): expected a size like \"512M\" or \"2G\", found 512 (int)",
            ),
            (
                "#{tags: [1]}",
                &|o| o.strings("tags").err(),
                "\"tags\" of x(..): expected only strings, found 1 (int)",
            ),
            (
                "#{tags: 1.5}",
                &|o| o.strings("tags").err(),
                "\"tags\" of x(..): expected an array of strings, found 1.5 (float)",
            ),
            (
                "#{n: 11}",
                &|o| o.number("n", 1, 10).err(),
                "\"n\" of x(..): expected a whole number from 1 to 10, found 11 (int)",
            ),
            (
                "#{n: true}",
                &|o| o.number("n", 1, 10).err(),
                "\"n\" of x(..): expected a whole number from 1 to 10, found true (bool)",
            ),
            (
                "#{on: 1}",
                &|o| o.flag("on").err(),
                "\"on\" of x(..): expected true or false, found 1 (int)",
            ),
            (
                "#{work: \"spinn\"}",
                &|o| o.word("work", &["spin", "yield"]).err(),
                "\"work\" of x(..): \"spinn\" is unknown; did you mean \"spin\"? It can be \"spin\", \"yield\"",
            ),
            (
                "#{work: []}",
                &|o| o.word("work", &["spin", "yield"]).err(),
                "\"work\" of x(..): expected one of \"spin\", \"yield\", found an array",
            ),
            (
                "#{env: #{a: []}}",
                &|o| o.texts("env", "a map").err(),
                "\"env\" of x(..): \"a\" is an array, not a text",
            ),
            (
                "#{env: 1}",
                &|o| o.paths("env").err(),
                "\"env\" of x(..): expected a map from a path here to a path in the guest, like #{ \"data.bin\": \"/data.bin\" }, found 1 (int)",
            ),
            (
                "#{rodata: #{a: ||1}}",
                &|o| o.values("rodata").err(),
                "\"rodata\" of x(..): \"a\" cannot be a closure; give a number, true, false or a string",
            ),
            (
                "#{topology: 1}",
                &|o| o.string("topology").err(),
                "\"topology\" of x(..): expected a string, found 1 (int)",
            ),
        ];
        for (text, read, want) in cases {
            assert_eq!(check(text, *read), *want, "{text}");
        }
    }

    #[test]
    fn values_are_read() {
        let map = map(
            "#{tags: \"a\", n: 3, env: #{A: 1, B: \"x\"}, rodata: #{s: 5_000_000, b: true, a: [1, 2.5]}, on: ()}",
        );
        let options = Options::new("x(..)", &map, KNOWN, &[]).unwrap();
        assert_eq!(options.strings("tags"), Ok(Some(vec!["a".to_string()])));
        assert_eq!(options.number("n", 1, 5), Ok(Some(3)));
        assert_eq!(options.flag("on"), Ok(None));
        let env = vec![("A".to_string(), "1".to_string()), ("B".into(), "x".into())];
        assert_eq!(options.texts("env", ""), Ok(Some(env)));
        let rodata = options.values("rodata").unwrap().unwrap();
        assert_eq!(
            serde_json::to_string(&rodata).unwrap(),
            r#"{"a":[1,2.5],"b":true,"s":5000000}"#
        );
    }
}
