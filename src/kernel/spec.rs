//! What a user writes to name a kernel, parsed.

use std::fmt;
use std::path::PathBuf;

use super::error::KernelError;

/// A kernel spec: `auto`, `host`, `debian:SERIES` or a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The newest cached Debian kernel with sched_ext, else the newest released one that Debian
    /// has now.
    Auto,
    /// The kernel that this machine runs.
    Host,
    /// The newest Debian kernel of a series.
    Debian(Series),
    /// A vmlinuz, a vmlinux or a directory that has one.
    Path(PathBuf),
}

/// Which Debian kernels are meant: `7.2`, `7.2.13`, a package version, or a whole release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series(String);

const DEBIAN: &str = "debian:";

impl Spec {
    /// Reads a spec. A word that is neither a keyword nor an existing file is refused with the
    /// nearest keyword.
    ///
    /// # Errors
    /// [`KernelError::BadSpec`], [`KernelError::NoSuchFile`].
    pub fn parse(text: &str) -> Result<Spec, KernelError> {
        if let Some(series) = text.strip_prefix(DEBIAN) {
            return Ok(Spec::Debian(Series::parse(text, series)?));
        }
        match text {
            "auto" => return Ok(Spec::Auto),
            "host" => return Ok(Spec::Host),
            "" => return Err(bad(text, "it is empty", None)),
            _ => {}
        }
        let path = PathBuf::from(text);
        // What cannot be looked at is told when it is opened, with the cause.
        if !matches!(path.try_exists(), Ok(false)) {
            return Ok(Spec::Path(path));
        }
        if text.contains('/') {
            return Err(KernelError::NoSuchFile { path });
        }
        let nearest = match text.split_once(':') {
            Some((_, series)) if looks_like_version(series) => Some(format!("{DEBIAN}{series}")),
            _ if looks_like_version(text) => Some(format!("{DEBIAN}{text}")),
            _ => ["auto", "host", "debian"]
                .into_iter()
                .find(|word| strsim::damerau_levenshtein(word, text) <= 2)
                .map(|word| word.replace("debian", "debian:7.2")),
        };
        Err(bad(text, "there is no such file", nearest))
    }
}

fn looks_like_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn bad(spec: &str, reason: &str, nearest: Option<String>) -> KernelError {
    KernelError::BadSpec { spec: spec.into(), reason: reason.into(), nearest }
}

impl Series {
    fn parse(spec: &str, series: &str) -> Result<Series, KernelError> {
        let known = |c: char| c.is_ascii_alphanumeric() || ".+-~".contains(c);
        if series.is_empty() {
            return Err(bad(spec, "it names no series", Some("debian:7.2".into())));
        }
        if !looks_like_version(series) || !series.chars().all(known) {
            let reason = format!("`{series}` is no kernel version");
            return Err(bad(spec, &reason, Some("debian:7.2".into())));
        }
        Ok(Series(series.to_owned()))
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a package version (`7.2.13-1`), or the release that it installs, is of this
    /// series: equal, or longer by whole components of the upstream version.
    #[must_use]
    pub fn matches(&self, version: &str, release: &str) -> bool {
        let upstream = version.rsplit_once('-').map_or(version, |(upstream, _)| upstream);
        let continues = |whole: &str| {
            whole
                .strip_prefix(&self.0)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '~']))
        };
        version == self.0 || release == self.0 || continues(upstream)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Auto => f.write_str("auto"),
            Spec::Host => f.write_str("host"),
            Spec::Debian(series) => write!(f, "{DEBIAN}{}", series.0),
            Spec::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_series_and_paths() {
        assert_eq!(Spec::parse("auto").expect("a keyword"), Spec::Auto);
        assert_eq!(Spec::parse("host").expect("a keyword"), Spec::Host);
        let debian = Spec::parse("debian:7.2").expect("a series");
        assert_eq!(debian, Spec::Debian(Series("7.2".into())));
        assert_eq!(debian.to_string(), "debian:7.2");
        let here = Spec::parse("Cargo.toml").expect("a file");
        assert_eq!(here, Spec::Path("Cargo.toml".into()));
    }

    #[test]
    fn a_series_is_matched_by_whole_components() {
        let cases = [
            ("7.2", "7.2.13-1", true),
            ("7.2", "7.2-1", true),
            ("7.2", "7.20.1-1", false),
            ("7", "7.20.1-1", true),
            ("7.3", "7.3~rc7-1~exp1", true),
            ("7.2.13", "7.2.13-1", true),
            ("7.2.13", "7.2.1-1", false),
            ("7.3.4-1~bpo13+1", "7.3.4-1~bpo13+1", true),
            ("7.3.4-1", "7.3.4-1~bpo13+1", false),
            ("6.12", "6.12.111-1~deb12u1", true),
        ];
        for (series, version, expected) in cases {
            let found = Series(series.into()).matches(version, "other");
            assert_eq!(found, expected, "{series} against {version}");
        }
        let release = "7.2.13+deb14-cloud-amd64";
        assert!(Series(release.into()).matches("7.2.13-1", release));
    }

    #[test]
    fn bad_specs_say_what_is_allowed_and_what_is_near() {
        let text = |spec: &str| Spec::parse(spec).expect_err("refused").to_string();
        let allowed = "a kernel is `auto`, `host`, `debian:SERIES` (such as `debian:7.2`), or the \
                       path of a vmlinuz, a vmlinux or a build tree";
        assert_eq!(
            text("atuo"),
            format!("bad kernel `atuo`: there is no such file; did you mean `auto`? ({allowed})")
        );
        assert_eq!(
            text("debain:7.3"),
            format!(
                "bad kernel `debain:7.3`: there is no such file; did you mean `debian:7.3`? \
                 ({allowed})"
            )
        );
        assert_eq!(
            text("7.3"),
            format!(
                "bad kernel `7.3`: there is no such file; did you mean `debian:7.3`? ({allowed})"
            )
        );
        assert_eq!(
            text("somewhere"),
            format!("bad kernel `somewhere`: there is no such file; {allowed}")
        );
        assert_eq!(
            text("debian:sid"),
            format!(
                "bad kernel `debian:sid`: `sid` is no kernel version; did you mean `debian:7.2`? \
                 ({allowed})"
            )
        );
        assert_eq!(
            text("debian:"),
            format!(
                "bad kernel `debian:`: it names no series; did you mean `debian:7.2`? ({allowed})"
            )
        );
        assert_eq!(text(""), format!("bad kernel ``: it is empty; {allowed}"));
        assert_eq!(
            text("/nowhere/vmlinuz"),
            "no such kernel: /nowhere/vmlinuz: no such file or directory; check the path, or use \
             `debian:7.2` to fetch one"
        );
    }
}
