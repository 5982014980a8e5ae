//! Which packages hold kernels, and which of them is meant.
//!
//! Older packaging has one package `linux-image-RELEASE` (unsigned twin: with `-unsigned` at the
//! end) with image and configuration below `boot/`. Newer packaging has `linux-binary-RELEASE`
//! (unsigned twin: `linux-binary-unsigned-RELEASE`) with the image alone below
//! `usr/lib/modules/RELEASE/`, the configuration in `linux-base-RELEASE`, and a `linux-image-..`
//! that only depends on them.

use std::cmp::Ordering;

use crate::kernel::spec::Series;
use crate::kernel::version;

/// The names of packages that may hold a kernel or its configuration, as a regular expression.
pub(super) const NAMES: &str = "^linux-(image|binary|base)-(unsigned-)?[0-9].*-amd64(-unsigned)?$";

/// A package that holds a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) version: String,
    /// What `uname -r` will print.
    pub(super) release: String,
    /// SHA-256 and length of the package file, from the archive's signed index.
    pub(super) sha256: String,
    pub(super) size: u64,
    /// The package that has the configuration, where that is not this one.
    pub(super) base: Option<Base>,
    flavour: Flavour,
    signed: bool,
}

/// Name, version and digest of a package file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) sha256: String,
}

/// Debian builds each kernel several times; the cloud flavour boots fastest in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flavour {
    RealTime,
    Generic,
    Cloud,
}

/// The release, flavour and signedness in a package's name; none for other packages.
fn parse_name(name: &str) -> Option<(&str, Flavour, bool)> {
    let rest = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"))?;
    let (rest, unsigned_first) = match rest.strip_prefix("unsigned-") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let (release, unsigned_last) = match rest.strip_suffix("-unsigned") {
        Some(rest) => (rest, true),
        None => (rest, false),
    };
    let version = release.strip_suffix("-amd64")?;
    if !version.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let flavour = match version {
        _ if version.ends_with("-cloud") => Flavour::Cloud,
        _ if version.ends_with("-rt") => Flavour::RealTime,
        _ => Flavour::Generic,
    };
    Some((release, flavour, !(unsigned_first || unsigned_last)))
}

/// The name of the package that may have the configuration for that one.
fn base_of(name: &str) -> Option<String> {
    let (release, ..) = parse_name(name).filter(|_| name.starts_with("linux-binary-"))?;
    Some(format!("linux-base-{release}"))
}

/// The candidates among records as `apt-cache search --full` prints them.
pub(super) fn parse_records(text: &str) -> Vec<Candidate> {
    let records: Vec<Record> = text.split("\n\n").filter_map(Record::parse).collect();
    let candidates = records.iter().filter_map(|record| candidate(record, &records));
    let mut candidates: Vec<Candidate> = candidates.collect();
    // One version can be in several suites.
    candidates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    candidates.dedup_by(|a, b| (&a.name, &a.version) == (&b.name, &b.version));
    candidates
}

struct Record<'a> {
    name: &'a str,
    version: &'a str,
    sha256: &'a str,
    size: u64,
    depends: &'a str,
}

impl<'a> Record<'a> {
    fn parse(text: &'a str) -> Option<Record<'a>> {
        let field = |name: &str| {
            let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
            text.lines().find_map(value)
        };
        let sha256 = field("SHA256")?;
        let is_digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then_some(Record {
            name: field("Package")?,
            version: field("Version")?,
            sha256,
            size: field("Size")?.parse().ok()?,
            depends: field("Depends").unwrap_or(""),
        })
    }

    fn depends_on(&self) -> impl Iterator<Item = &'a str> {
        self.depends.split([',', '|']).filter_map(|item| item.split_whitespace().next())
    }
}

fn candidate(record: &Record<'_>, all: &[Record<'_>]) -> Option<Candidate> {
    let (release, flavour, signed) = parse_name(record.name)?;
    // A package that depends on a kernel is a name for it and holds none.
    if record.depends_on().any(|name| name != record.name && parse_name(name).is_some()) {
        return None;
    }
    let base = base_of(record.name).and_then(|name| {
        let same = |other: &&Record<'_>| other.name == name && other.version == record.version;
        let base = all.iter().find(same)?;
        Some(Base { name, version: base.version.to_owned(), sha256: base.sha256.to_owned() })
    });
    Some(Candidate {
        name: record.name.to_owned(),
        version: record.version.to_owned(),
        release: release.to_owned(),
        sha256: record.sha256.to_owned(),
        size: record.size,
        base,
        flavour,
        signed,
    })
}

impl Candidate {
    /// Whether it is a release and no candidate for one.
    pub(super) fn is_released(&self) -> bool {
        is_released(&self.version)
    }

    /// The order of preference, best last: flavour, version, signedness.
    fn preference(&self, other: &Self) -> Ordering {
        self.flavour
            .cmp(&other.flavour)
            .then_with(|| version::compare(&self.version, &other.version))
            .then_with(|| self.signed.cmp(&other.signed))
    }

    /// The series that it belongs to, as one asks for it.
    pub(super) fn series_name(&self) -> String {
        let (major, minor) = self.series();
        format!("{major}.{minor}")
    }

    /// Major and minor version.
    fn series(&self) -> (u32, u32) {
        series_of(&self.version)
    }
}

/// Whether a package version is of a release and not of a candidate for one.
pub(crate) fn is_released(version: &str) -> bool {
    !version.contains("~rc")
}

/// Whether a package has the flavour that is preferred.
pub(crate) fn is_cloud(name: &str) -> bool {
    parse_name(name).is_some_and(|(_, flavour, _)| flavour == Flavour::Cloud)
}

fn series_of(version: &str) -> (u32, u32) {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The one that is meant: the best of the series, or the best of all released ones.
pub(super) fn choose<'a>(
    candidates: &'a [Candidate],
    series: Option<&Series>,
) -> Option<&'a Candidate> {
    let meant = candidates.iter().filter(|candidate| match series {
        Some(series) => series.matches(&candidate.version, &candidate.release),
        None => candidate.is_released(),
    });
    meant.max_by(|a, b| a.preference(b))
}

/// The best candidate of every series, newest first.
pub(super) fn newest_of_each(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut series: Vec<_> = candidates.iter().map(Candidate::series).collect();
    series.sort_unstable();
    series.dedup();
    let of = |series| candidates.iter().filter(move |c| c.series() == series);
    let best = |series| of(series).max_by(|a, b| a.preference(b));
    series.into_iter().rev().filter_map(best).collect()
}

/// Series that there are, those nearest to the one asked for first.
pub(super) fn nearest_series(candidates: &[Candidate], asked: &str) -> Vec<String> {
    let (major, minor) = series_of(asked);
    let mut series: Vec<_> = candidates.iter().map(Candidate::series).collect();
    series.sort_unstable();
    series.dedup();
    // Within another major version, the end that points at the one asked for is nearer.
    let distance = |&(a, b): &(u32, u32)| match a.cmp(&major) {
        Ordering::Less => (major - a, u32::MAX - b),
        Ordering::Equal => (0, b.abs_diff(minor)),
        Ordering::Greater => (a - major, b),
    };
    series.sort_by_key(distance);
    series.into_iter().take(6).map(|(major, minor)| format!("{major}.{minor}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Spec;

    fn record(name: &str, version: &str, depends: &str) -> String {
        let depends = match depends {
            "" => String::new(),
            _ => format!("Depends: {depends}\n"),
        };
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\n{depends}Description: x\n \
             more\nSize: 12\nSHA256: {:064}\n\n",
            1
        )
    }

    fn archive() -> Vec<Candidate> {
        let new = |release: &str, version: &str| {
            let base = format!("linux-base-{release}");
            [
                record(
                    &format!("linux-binary-{release}"),
                    version,
                    &format!("{base} (= {version})"),
                ),
                record(&format!("linux-binary-unsigned-{release}"), version, &base),
                record(&base, version, ""),
                record(
                    &format!("linux-image-{release}"),
                    version,
                    &format!("initramfs | dracut, {base}, linux-binary-{release} (= {version})"),
                ),
            ]
            .concat()
        };
        let text = [
            new("7.2.9+deb13-cloud-amd64", "7.2.9-1~bpo13+1"),
            new("7.2.13+deb14-cloud-amd64", "7.2.13-1"),
            new("7.2.13+deb14-amd64", "7.2.13-1"),
            new("7.3-cloud-amd64", "7.3~rc7-1~exp1"),
            new("7.10.1+deb14-rt-amd64", "7.10.1-1"),
            record("linux-image-6.12.111+deb12-cloud-amd64", "6.12.111-1", "linux-base (>= 4)"),
            record("linux-image-6.12.111+deb12-cloud-amd64-unsigned", "6.12.111-1", ""),
            record(
                "linux-image-6.12-cloud-amd64",
                "6.12.111-1",
                "linux-image-6.12.111+deb12-cloud-amd64",
            ),
            record("linux-image-6.12.111+deb12-cloud-amd64-dbg", "6.12.111-1", ""),
            record("linux-image-amd64", "7.2.13-1", ""),
        ]
        .concat();
        parse_records(&text)
    }

    fn chosen(spec: &str) -> Option<String> {
        let Spec::Debian(series) = Spec::parse(spec).expect("a spec") else { panic!("{spec}") };
        choose(&archive(), Some(&series)).map(|candidate| candidate.name.clone())
    }

    #[test]
    fn the_newest_cloud_kernel_of_the_series_is_chosen_signed_if_can_be() {
        let cases = [
            ("debian:7.2", Some("linux-binary-7.2.13+deb14-cloud-amd64")),
            ("debian:7.2.9", Some("linux-binary-7.2.9+deb13-cloud-amd64")),
            ("debian:7.2.9-1~bpo13+1", Some("linux-binary-7.2.9+deb13-cloud-amd64")),
            ("debian:7.2.13+deb14-amd64", Some("linux-binary-7.2.13+deb14-amd64")),
            ("debian:7.3", Some("linux-binary-7.3-cloud-amd64")),
            ("debian:7.10", Some("linux-binary-7.10.1+deb14-rt-amd64")),
            ("debian:6.12", Some("linux-image-6.12.111+deb12-cloud-amd64")),
            ("debian:7.1", None),
        ];
        for (spec, expected) in cases {
            assert_eq!(chosen(spec).as_deref(), expected, "{spec}");
        }
        let auto = archive();
        let auto = choose(&auto, None).expect("there are some");
        assert_eq!(auto.name, "linux-binary-7.2.13+deb14-cloud-amd64");
    }

    #[test]
    fn the_configuration_comes_with_it() {
        let archive = archive();
        let base = |name: &str| {
            let candidate = archive.iter().find(|c| c.name == name).expect("it is there");
            candidate.base.as_ref().map(|base| base.name.clone())
        };
        let expected = Some("linux-base-7.2.13+deb14-cloud-amd64".to_owned());
        assert_eq!(base("linux-binary-7.2.13+deb14-cloud-amd64"), expected);
        assert_eq!(base("linux-binary-unsigned-7.2.13+deb14-cloud-amd64"), expected);
        assert_eq!(base("linux-image-6.12.111+deb12-cloud-amd64"), None);
    }

    #[test]
    fn series_are_listed_by_nearness_and_by_age() {
        assert_eq!(nearest_series(&archive(), "7.4"), ["7.3", "7.2", "7.10", "6.12"]);
        assert_eq!(nearest_series(&archive(), "5"), ["6.12", "7.2", "7.3", "7.10"]);
        assert_eq!(nearest_series(&archive(), "9.9"), ["7.10", "7.3", "7.2", "6.12"]);
        let archive = archive();
        let each = newest_of_each(&archive);
        let versions: Vec<_> = each.iter().map(|candidate| candidate.version.as_str()).collect();
        assert_eq!(versions, ["7.10.1-1", "7.3~rc7-1~exp1", "7.2.13-1", "6.12.111-1"]);
    }

    #[test]
    fn records_without_a_digest_are_none() {
        assert!(
            parse_records("Package: linux-image-7.2-amd64\nVersion: 7.2-1\nSize: 1\n").is_empty()
        );
        assert!(parse_records("\n\n\nPackage\n: :\n\n").is_empty());
    }
}
