//! Which scenarios are meant, and what they become on this command line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Shard;
use super::files::Script;
use crate::cli::Failure;
use crate::scenario::cell::Overrides;
use crate::scenario::verdict::plural;
use crate::scenario::{ScenarioDecl, with_axes};
use crate::words::nearest;

/// Compiles a script and gives what it declares, or says what is wrong with it.
pub(super) type Collect<'a> = &'a dyn Fn(&Path) -> Result<Vec<ScenarioDecl>, String>;

/// Everything that the scripts declare. All are compiled before anything is said, so that one
/// round shows every mistake.
///
/// A file found in a directory that declares no scenario is a module for others; one that the
/// user named is a script to be run as a whole.
pub(super) fn collect(scripts: &[Script], collect: Collect) -> Result<Vec<ScenarioDecl>, Failure> {
    let (mut decls, mut wrong) = (Vec::new(), Vec::new());
    for script in scripts {
        match collect(&script.path) {
            Ok(found) => decls.extend(found.into_iter().filter(|d| script.named || !d.plain)),
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() {
        return Ok(decls);
    }
    let count = plural(wrong.len() as u64, "script");
    let text = format!("{count} cannot be used; nothing was run\n\n{}", wrong.join("\n\n"));
    Err(Failure::usage(text))
}

/// The scenarios whose name contains `filter` (in whatever case), or that have it as a tag.
pub(super) fn select(
    decls: Vec<ScenarioDecl>,
    filter: Option<&str>,
) -> Result<Vec<ScenarioDecl>, Failure> {
    if decls.is_empty() {
        return Err(Failure::new("no scenarios there: a script declares one with scenario(..)"));
    }
    let Some(filter) = filter else {
        return Ok(decls);
    };
    let wanted = filter.to_lowercase();
    let matches = |d: &ScenarioDecl| {
        d.name.to_lowercase().contains(&wanted) || d.options.tags.iter().any(|tag| tag == filter)
    };
    let (chosen, rest): (Vec<_>, Vec<_>) = decls.into_iter().partition(matches);
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let mut text = format!("{filter:?} matches none of {}", plural(rest.len() as u64, "scenario"));
    let names = rest
        .iter()
        .flat_map(|d| d.options.tags.iter().map(String::as_str).chain([d.name.as_str()]));
    match nearest(filter, names) {
        Some(near) => text.push_str(&format!("; did you mean {near:?}?")),
        None => text.push_str("; --list shows their names and tags"),
    }
    Err(Failure::new(text))
}

/// One part of N, as even as can be. Which scenarios are in it follows from their names and those
/// of their files, without directories, so that machines agree whatever the order of the paths and
/// wherever these lie; one scenario more moves few of the others.
pub(super) fn part(decls: Vec<ScenarioDecl>, shard: Option<Shard>) -> Vec<ScenarioDecl> {
    let Some(Shard { part, of }) = shard else { return decls };
    let mut twins = BTreeMap::new();
    let numbers = decls.iter().map(|decl| {
        let file = decl.file.file_name().unwrap_or_default().as_encoded_bytes();
        // Those of the same name count in their order.
        let twin = twins.entry((file, decl.name.as_str())).or_insert(0_u64);
        *twin += 1;
        let key = [file, decl.name.as_bytes(), &twin.to_le_bytes()].join(&0);
        Sha256::digest(key).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    });
    let mut order: Vec<(u64, usize)> = numbers.zip(0..).collect();
    order.sort_unstable();
    // So many are in every part, and so many parts have one more.
    let (each, mut more) = (decls.len() / of, decls.len() % of);
    let mut sizes = BTreeMap::new();
    let mut own = vec![false; decls.len()];
    for (number, i) in order {
        let mut at = usize::try_from(number % of as u64).unwrap_or_default();
        // The first one from there on that has room.
        loop {
            let size = sizes.entry(at).or_insert(0);
            if *size < each || (*size == each && more > 0) {
                more -= usize::from(*size == each);
                *size += 1;
                break;
            }
            at = (at + 1) % of;
        }
        own[i] = at == part - 1;
    }
    decls.into_iter().zip(own).filter(|(_, own)| *own).map(|(decl, _)| decl).collect()
}

/// One line per scenario: where it stands, its name, its tags.
pub(super) fn list(decls: &[ScenarioDecl]) -> String {
    let mut out = String::new();
    for decl in decls {
        out.push_str(&decl.file.display().to_string());
        if let Some(at) = &decl.at {
            out.push_str(&format!(":{}", at.line));
        }
        out.push_str(&format!(": {}", decl.name));
        if !decl.options.tags.is_empty() {
            out.push_str(&format!(" [{}]", decl.options.tags.join(", ")));
        }
        out.push('\n');
    }
    out
}

/// Names as they were declared, by the script and the place in it.
pub(super) type Declared = BTreeMap<(PathBuf, usize), String>;

/// The scenarios with this command line's options in the place of their own. What a matrix varies
/// and the command line sets is no longer in their names; of combinations that then are the same
/// the first is left.
pub(super) fn overridden(
    decls: Vec<ScenarioDecl>,
    overrides: &Overrides,
) -> (Vec<ScenarioDecl>, Declared) {
    let set = [("topology", overrides.topology.is_some()), ("kernel", overrides.kernel.is_some())];
    let (mut out, mut declared) = (Vec::<ScenarioDecl>::new(), Declared::new());
    for mut decl in decls {
        let before = decl.name.clone();
        overrides.apply(&mut decl.options);
        let axes = std::mem::take(&mut decl.options.axes);
        if let Some(name) = before.strip_suffix(with_axes("", &axes).as_str()) {
            let (gone, left): (Vec<_>, Vec<_>) =
                axes.into_iter().partition(|(axis, _)| set.contains(&(axis.as_str(), true)));
            decl.name = with_axes(name, &left);
            decl.options.axes = left;
            let same = |other: &ScenarioDecl| other.file == decl.file && other.name == decl.name;
            if !gone.is_empty() && out.iter().any(same) {
                continue;
            }
        }
        declared.insert((decl.file.clone(), decl.index), before);
        out.push(decl);
    }
    (out, declared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::ScenarioOptions;
    use crate::scenario::verdict::ScriptPos;

    fn decl(name: &str, tags: &[&str], plain: bool) -> ScenarioDecl {
        let options = ScenarioOptions {
            tags: tags.iter().map(|t| (*t).to_string()).collect(),
            ..ScenarioOptions::default()
        };
        let at = ScriptPos { file: "a.rhai".into(), line: 7, column: 1, text: String::new() };
        ScenarioDecl {
            name: name.into(),
            file: "a.rhai".into(),
            index: 0,
            at: (!plain).then_some(at),
            plain,
            boots: !plain,
            options,
        }
    }

    fn script(path: &str, named: bool) -> Script {
        Script { path: path.into(), named }
    }

    #[test]
    fn modules_in_directories_are_not_scenarios() {
        let plain = |_: &Path| Ok(vec![decl("a", &[], true)]);
        assert_eq!(collect(&[script("a.rhai", false)], &plain).unwrap().len(), 0);
        assert_eq!(collect(&[script("a.rhai", true)], &plain).unwrap().len(), 1);
    }

    #[test]
    fn every_script_that_does_not_compile_is_told() {
        let some = |path: &Path| match path.to_str() {
            Some("good") => Ok(vec![decl("x", &[], false)]),
            _ => Err(format!("{} is bad", path.display())),
        };
        let scripts = [script("good", true), script("b", true), script("c", true)];
        let failure = collect(&scripts, &some).unwrap_err();
        assert_eq!(failure.code, 64);
        assert_eq!(
            failure.message,
            "2 scripts cannot be used; nothing was run\n\nb is bad\n\nc is bad"
        );
    }

    #[test]
    fn filters_match_names_and_tags() {
        let all = || vec![decl("Counters advance", &["smoke"], false), decl("hash", &[], false)];
        let names = |filter| -> Vec<String> {
            select(all(), filter).unwrap().into_iter().map(|d| d.name).collect()
        };
        assert_eq!(names(None).len(), 2);
        assert_eq!(names(Some("ADVANCE")), ["Counters advance"]);
        assert_eq!(names(Some("smoke")), ["Counters advance"]);
        assert_eq!(names(Some("")).len(), 2);
        let cases = [
            ("smok", "\"smok\" matches none of 2 scenarios; did you mean \"smoke\"?"),
            ("xyzzy", "\"xyzzy\" matches none of 2 scenarios; --list shows their names and tags"),
        ];
        for (filter, says) in cases {
            let failure = select(all(), Some(filter)).unwrap_err();
            assert_eq!((failure.message.as_str(), failure.code), (says, 1));
        }
        let failure = select(vec![], None).unwrap_err();
        assert_eq!(failure.code, 1, "nothing matched");
    }

    #[test]
    fn shards_are_all_of_it_and_nothing_twice() {
        let all = || (0..7).map(|i| decl(&i.to_string(), &[], false)).collect::<Vec<_>>();
        for of in 1..9 {
            let parts = (1..=of).flat_map(|n| part(all(), Some(Shard { part: n, of })));
            let mut names: Vec<String> = parts.map(|decl| decl.name).collect();
            names.sort();
            assert_eq!(names, ["0", "1", "2", "3", "4", "5", "6"]);
        }
    }

    #[test]
    fn what_the_command_line_sets_is_no_part_of_a_name() {
        let varied = |topology: &str, kernel: &str, index| {
            let axes = [("topology", topology), ("kernel", kernel)];
            let axes = axes.map(|(axis, value)| (axis.to_owned(), value.to_owned())).to_vec();
            let mut decl = decl(&with_axes("x", &axes), &[], false);
            (decl.index, decl.options.axes) = (index, axes);
            decl
        };
        let all = || {
            let two = |t, i| [varied(t, "debian:7.2", i), varied(t, "debian:7.3", i + 1)];
            [two("1n1l1c1t", 0), two("1n1l2c1t", 2), [decl("y", &[], false), decl("z", &[], false)]]
                .concat()
        };
        let told = |overrides: Overrides| {
            let (decls, declared) = overridden(all(), &overrides);
            let first = declared[&("a.rhai".into(), 0)].clone();
            (decls.into_iter().map(|d| d.name).collect::<Vec<_>>(), first)
        };
        let none = Overrides::default();
        assert_eq!(told(none.clone()).0.len(), 6);
        let kernel = Overrides { kernel: Some("host".into()), ..none.clone() };
        let (names, _) = told(kernel.clone());
        assert_eq!(names, ["x[topology=1n1l1c1t]", "x[topology=1n1l2c1t]", "y", "z"]);
        let both = Overrides { topology: Some("1n1l8c1t".into()), ..kernel };
        assert_eq!(told(both).0, ["x", "y", "z"]);
    }

    /// The part of `of` that each name is in.
    fn parts(decls: &[ScenarioDecl], of: usize) -> BTreeMap<String, usize> {
        let names = |n| {
            let own = part(decls.to_vec(), Some(Shard { part: n, of }));
            own.into_iter().map(move |decl| (decl.name, n))
        };
        (1..=of).flat_map(names).collect()
    }

    fn numbered(count: usize) -> Vec<ScenarioDecl> {
        (0..count).map(|i| decl(&format!("scenario {i}"), &[], false)).collect()
    }

    #[test]
    fn shards_are_even_and_the_same_in_whatever_order_and_place() {
        for (count, of) in [(1, 2), (4, 2), (7, 3), (40, 7), (3, 5), (2, usize::MAX)] {
            let few = of.min(9);
            let size = |n| part(numbered(count), Some(Shard { part: n, of })).len();
            let sizes: Vec<usize> = (1..=few).map(size).collect();
            let even = |size: &usize| [count / of, count.div_ceil(of)].contains(size);
            assert!(sizes.iter().all(even), "{count} in {of}: {sizes:?}");
        }
        let forth = numbered(40);
        let mut back: Vec<_> = forth.iter().rev().cloned().collect();
        back.iter_mut().for_each(|decl| decl.file = "/elsewhere/a.rhai".into());
        assert_eq!(parts(&forth, 4), parts(&back, 4));
    }

    #[test]
    fn one_scenario_more_moves_few_others_between_shards() {
        let mut moved = 0;
        for count in 40..80 {
            let (before, after) = (parts(&numbered(count), 4), parts(&numbered(count + 1), 4));
            moved += before.iter().filter(|(name, part)| after[*name] != **part).count();
        }
        // Dealing out a sorted list moves all that are behind the new one, 30 on average.
        assert!(moved <= 40 * 3, "{moved} moved in 40 rounds");
    }

    #[test]
    fn lists_can_be_read_and_jumped_to() {
        let text = list(&[decl("x", &["a", "b"], false), decl("whole", &[], true)]);
        assert_eq!(text, "a.rhai:7: x [a, b]\na.rhai: whole\n");
    }
}
