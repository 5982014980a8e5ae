//! The machine's own apt sources, and those of the private apt root that are made from them.
//!
//! Both forms of sources.list(5) are read: one-line `.list` and deb822 `.sources`. What is taken
//! over is where the Debian archive is mirrored for this machine and how it is trusted; suites
//! that have newer kernels are added to that.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Suites that have kernels beyond those of a stable release: the newest ones, candidates for
/// releases, and (from bookworm's backports) the last ones without sched_ext.
const EXTRA_SUITES: [&str; 4] = ["sid", "trixie-backports", "experimental", "bookworm-backports"];

/// Names of Debian suites; a third party's repository may use them too.
const SUITES: [&str; 14] = [
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "sid",
    "experimental",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "rc-buggy",
    "buster",
];

/// Parts of a release that have suites of their own.
const POCKETS: [&str; 6] =
    ["-updates", "-security", "-backports", "-backports-sloppy", "-proposed-updates", "/updates"];

/// Options that say how an archive is verified and reached, by their deb822 names. Others are
/// left out: they choose languages, targets and the like.
const KEPT_OPTIONS: [&str; 9] = [
    "Signed-By",
    "Trusted",
    "Allow-Insecure",
    "Allow-Weak",
    "Check-Valid-Until",
    "Valid-Until-Max",
    "Check-Date",
    "By-Hash",
    "InRelease-Path",
];

/// One source: archives, suites, components, and options with their deb822 names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    options: Vec<(String, String)>,
}

/// Everything in the files that apt itself would read, and these files' names.
pub(super) fn read_machine(list: &Path, parts: &Path) -> (Vec<Source>, Vec<PathBuf>) {
    let mut files = vec![list.to_owned()];
    let mut in_parts: Vec<_> = fs::read_dir(parts)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let known = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            let named = path.file_name().and_then(|n| n.to_str());
            named.is_some_and(|n| n.chars().all(known))
                && path.extension().is_some_and(|e| e == "list" || e == "sources")
        })
        .collect();
    in_parts.sort();
    files.extend(in_parts);
    let mut sources = Vec::new();
    files.retain(|path| match read_bounded(path) {
        Ok(text) if path.extension().is_some_and(|e| e == "sources") => {
            sources.extend(parse_deb822(&text));
            true
        }
        Ok(text) => {
            sources.extend(parse_one_line(&text));
            true
        }
        Err(_) => false,
    });
    (sources, files)
}

/// Sources are text of some lines; whatever is longer is none.
fn read_bounded(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > 1 << 20 {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// `deb [option=value ..] URI SUITE COMPONENT..`
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line.strip_prefix("deb").filter(|r| r.starts_with([' ', '\t', '[']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let options = options.split_whitespace().filter_map(|option| {
            let (name, value) = option.split_once('=')?;
            Some((kept(name)?.to_owned(), value.replace(',', " ")))
        });
        sources.push(Source {
            uris: vec![uri],
            suites: vec![suite],
            components: words.collect(),
            options: options.collect(),
        });
    }
    sources
}

/// Paragraphs of `Field: value`, values going on in indented lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(source_of(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                let _ = write!(value, "\n{}", line.trim_end());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    sources
}

fn source_of(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        let found = fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    let words = |name| field(name).unwrap_or("").split_whitespace().map(str::to_owned).collect();
    let off = field("Enabled").is_some_and(|value| ["no", "false", "0", "off"].contains(&value));
    if off || !field("Types")?.split_whitespace().any(|kind| kind == "deb") {
        return None;
    }
    let options =
        fields.iter().filter_map(|(name, value)| Some((kept(name)?.to_owned(), value.clone())));
    Some(Source {
        uris: words("URIs"),
        suites: words("Suites"),
        components: words("Components"),
        options: options.collect(),
    })
}

fn kept(name: &str) -> Option<&'static str> {
    KEPT_OPTIONS.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

impl Source {
    fn option(&self, name: &str) -> Option<&str> {
        let found = self.options.iter().find(|(option, _)| option == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The part of it that may be a mirror of the Debian archive's `main`.
    fn debian_part(&self) -> Option<Source> {
        let known = |suite: &String| {
            let base = POCKETS.iter().find_map(|pocket| suite.strip_suffix(pocket));
            SUITES.contains(&base.unwrap_or(suite))
        };
        let mut part = self.clone();
        part.suites.retain(known);
        part.uris.retain(|uri| !uri.starts_with("cdrom:"));
        part.components.retain(|component| component == "main");
        let empty = part.suites.is_empty() || part.uris.is_empty() || part.components.is_empty();
        (!empty).then_some(part)
    }

    /// How surely it is Debian's archive: signed with its keyring, and named after it.
    fn likeness(&self) -> u32 {
        let signed = self.option("Signed-By").is_some_and(|by| by.contains("debian-archive"));
        let named = self.uris.iter().any(|uri| uri.contains("debian"));
        2 * u32::from(signed) + u32::from(named)
    }

    fn is_security(&self) -> bool {
        let security = |suite: &String| suite.ends_with("-security") || suite.ends_with("/updates");
        self.suites.iter().all(security)
    }
}

/// The private root's sources as a deb822 file: the machine's own Debian suites and the extra
/// ones from the same mirror, package lists of `main` for amd64 only. None when the machine has
/// no source that looks like Debian's archive.
pub(super) fn private_sources(machine: &[Source]) -> Option<String> {
    let mut debian: Vec<Source> = machine.iter().filter_map(Source::debian_part).collect();
    let likeliest = debian.iter().map(Source::likeness).max()?;
    // A third party's repository is told apart where anything at all tells Debian's.
    if likeliest > 0 {
        debian.retain(|source| source.likeness() > 0);
    }
    let archive = debian
        .iter()
        .filter(|source| !source.is_security())
        .max_by_key(|source| source.likeness())?;
    let mut there: BTreeSet<&str> =
        debian.iter().flat_map(|source| &source.suites).map(String::as_str).collect();
    // unstable is another name for sid.
    if there.contains("unstable") {
        there.insert("sid");
    }
    let mut extra = archive.clone();
    extra.suites = EXTRA_SUITES.map(str::to_owned).to_vec();
    extra.suites.retain(|suite| !there.contains(suite.as_str()));
    if !extra.suites.is_empty() {
        debian.push(extra);
    }
    Some(debian.iter().map(paragraph).collect::<Vec<_>>().join("\n"))
}

fn paragraph(source: &Source) -> String {
    let mut text = format!(
        "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nArchitectures: amd64\nTargets: Packages\n",
        source.uris.join(" "),
        source.suites.join(" "),
        source.components.join(" "),
    );
    for (name, value) in &source.options {
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# of a fresh installation
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

types: deb
uris: http://mirror.invalid/debian-security
suites: bookworm-security
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://third.invalid/apt
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
";

    #[test]
    fn a_deb822_machine_keeps_its_suites_and_gets_the_others() {
        let made = private_sources(&parse_deb822(DEB822)).expect("Debian is there");
        assert_eq!(
            made,
            "\
Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Targets: Packages
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Architectures: amd64
Targets: Packages
Signed-By: 
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBGPL0BUBEADmW5NdOOHwPIJlgPu6JDcKw/NZJPR8lsD3K87ZM18gzyQZJD+w
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.invalid/debian
Suites: sid trixie-backports experimental bookworm-backports
Components: main
Architectures: amd64
Targets: Packages
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"
        );
    }

    #[test]
    fn a_one_line_machine_is_read_as_well() {
        let text = "\
# deb http://commented.invalid/debian bookworm main
deb-src http://mirror.invalid/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb [arch=amd64,i386 signed-by=/k/debian-archive.gpg,/k/b.gpg check-valid-until=no] http://mirror.invalid/debian unstable main non-free # mine
deb http://third.invalid/apt bookworm stable
";
        let made = private_sources(&parse_one_line(text)).expect("Debian is there");
        assert_eq!(
            made,
            "\
Types: deb
URIs: http://mirror.invalid/debian
Suites: unstable
Components: main
Architectures: amd64
Targets: Packages
Signed-By: /k/debian-archive.gpg /k/b.gpg
Check-Valid-Until: no

Types: deb
URIs: http://mirror.invalid/debian
Suites: trixie-backports experimental bookworm-backports
Components: main
Architectures: amd64
Targets: Packages
Signed-By: /k/debian-archive.gpg /k/b.gpg
Check-Valid-Until: no
"
        );
    }

    #[test]
    fn an_unnamed_mirror_serves_where_nothing_is_likelier() {
        let sources = parse_one_line("deb http://proxy.invalid/mirror bookworm main\n");
        let made = private_sources(&sources).expect("it has a Debian suite");
        assert!(made.contains("URIs: http://proxy.invalid/mirror\nSuites: sid "), "{made}");
    }

    #[test]
    fn other_systems_have_no_debian_archive() {
        let sources = parse_one_line(
            "deb http://archive.invalid/ubuntu noble main\n\
             deb http://mirror.invalid/debian-security bookworm-security main\n",
        );
        assert_eq!(private_sources(&sources), None);
    }

    #[test]
    fn files_are_those_that_apt_reads() {
        let dir = tempfile::tempdir().expect("a directory");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        write("a.list", "deb http://a.invalid/debian sid main\n");
        write("b.sources", "Types: deb\nURIs: u:b\nSuites: sid\nComponents: main\n");
        write("c.list.disabled", "deb http://c.invalid/debian sid main\n");
        write("d e.list", "deb http://d.invalid/debian sid main\n");
        let (sources, files) = read_machine(&dir.path().join("none"), dir.path());
        let uris: Vec<_> = sources.iter().flat_map(|source| &source.uris).collect();
        assert_eq!(uris, ["http://a.invalid/debian", "u:b"]);
        assert_eq!(files, [dir.path().join("a.list"), dir.path().join("b.sources")]);
    }
}
